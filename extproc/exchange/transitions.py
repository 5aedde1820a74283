"""The states of an exchange and their transitions.

``State`` follows the order in which Envoy sends its messages, and each state is named
for the message expected next; ``TRANSITIONS`` lists every legal transition.
``RequestStage`` and ``ResponseStage`` record the progress so far, which determines the
reply to a message. As in the h11 library, all state that affects a transition is in
this file. The docstrings of the handler classes list their other state.
"""

from __future__ import annotations

from enum import Enum

from extproc.exchange.events import (
    Event,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)


class ProtocolError(Exception):
    """A message arrived that ext_proc's order of messages does not allow."""


class State(Enum):
    """The message that the exchange expects next."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    DONE = "done"

    # Enum would hash the member's name in Python code, which is too slow for the lookup
    # of a transition at every event.
    __hash__ = object.__hash__


MORE, END = False, True

TRANSITIONS: dict[tuple[State, type[Event], bool], State] = {
    (State.REQUEST_HEADERS, RequestHeaders, MORE): State.REQUEST_BODY,
    (State.REQUEST_HEADERS, RequestHeaders, END): State.RESPONSE_HEADERS,
    (State.REQUEST_BODY, RequestBody, MORE): State.REQUEST_BODY,
    (State.REQUEST_BODY, RequestBody, END): State.RESPONSE_HEADERS,
    (State.REQUEST_BODY, RequestTrailers, END): State.RESPONSE_HEADERS,
    # A local reply (413, 408), or a backend that responds before it has read the whole
    # body.
    (State.REQUEST_BODY, ResponseHeaders, MORE): State.RESPONSE_BODY,
    (State.REQUEST_BODY, ResponseHeaders, END): State.DONE,
    # Streamed modes repeat the end of the body in an empty message.
    (State.RESPONSE_HEADERS, RequestBody, MORE): State.RESPONSE_HEADERS,
    (State.RESPONSE_HEADERS, RequestBody, END): State.RESPONSE_HEADERS,
    (State.RESPONSE_HEADERS, RequestTrailers, END): State.RESPONSE_HEADERS,
    (State.RESPONSE_HEADERS, ResponseHeaders, MORE): State.RESPONSE_BODY,
    (State.RESPONSE_HEADERS, ResponseHeaders, END): State.DONE,
    (State.RESPONSE_BODY, ResponseBody, MORE): State.RESPONSE_BODY,
    (State.RESPONSE_BODY, ResponseBody, END): State.DONE,
    (State.RESPONSE_BODY, ResponseTrailers, END): State.DONE,
    # The rest of a request whose response has started.
    (State.RESPONSE_BODY, RequestBody, MORE): State.RESPONSE_BODY,
    (State.RESPONSE_BODY, RequestBody, END): State.RESPONSE_BODY,
    (State.RESPONSE_BODY, RequestTrailers, END): State.RESPONSE_BODY,
    (State.DONE, RequestBody, MORE): State.DONE,
    (State.DONE, RequestBody, END): State.DONE,
    (State.DONE, RequestTrailers, END): State.DONE,
    (State.DONE, ResponseBody, MORE): State.DONE,
    (State.DONE, ResponseBody, END): State.DONE,
    (State.DONE, ResponseTrailers, END): State.DONE,
}


def after(state: State, event: Event) -> State:
    """Return the state after an event.

    Raises:
        ProtocolError: ``TRANSITIONS`` has no such transition. Only Envoy can cause
            this, not a client.
    """
    try:
        return TRANSITIONS[state, type(event), event.end_of_stream]
    except KeyError:
        raise ProtocolError(
            f"{type(event).__name__} (end_of_stream={event.end_of_stream}) "
            f"while waiting for {state.value}"
        ) from None


class RequestStage(Enum):
    """The progress of the request."""

    UNDECIDED = "undecided"
    """The body is collected for the decision."""
    SETTLED = "settled"
    """A decision was made, or none will be made; the rest of the request passes
    through."""
    OVERTAKEN = "overtaken"
    """The response started before a decision was made; no decision will be made."""


class ResponseStage(Enum):
    """What is done with the response."""

    IGNORED = "ignored"
    """The response is not observed, or no longer observed."""
    AWAITED = "awaited"
    """The response will be observed; it has not started."""
    OBSERVED = "observed"
    """The response's body is read as it passes through."""


class Progress:
    """The state of an exchange.

    Attributes:
        state: the message expected next.
        request: the progress of the request.
        response: what is done with the response.
        request_echoed: whether the request body is sent in full duplex.
        response_echoed: whether the response body is sent in full duplex.
    """

    __slots__ = ("request", "request_echoed", "response", "response_echoed", "state")

    def __init__(self) -> None:
        self.state = State.REQUEST_HEADERS
        self.request = RequestStage.UNDECIDED
        self.response = ResponseStage.IGNORED
        self.request_echoed = False
        self.response_echoed = False

    @property
    def owes_bodies(self) -> bool:
        """Whether ending the stream early would lose body bytes.

        Envoy keeps no copy of a body that it sends in full duplex.
        """
        return self.request_echoed or self.response_echoed

    @property
    def may_end(self) -> bool:
        """Whether the stream may end after the request: it needs no response."""
        return self.response is ResponseStage.IGNORED and not self.response_echoed

    @property
    def awaits_body(self) -> bool:
        """Whether the exchange expects a body that the gateway keeps a copy of."""
        return (
            self.state is State.REQUEST_BODY
            and self.request is RequestStage.UNDECIDED
            and not self.request_echoed
        )

    def settle(self, follows_response: bool = False) -> None:
        """Record that a decision was made, or that none will be."""
        self.request = RequestStage.SETTLED
        if follows_response:
            self.response = ResponseStage.AWAITED

    def ignore_response(self) -> None:
        """Stop observing the response."""
        self.response = ResponseStage.IGNORED

    def respond(self) -> None:
        """Record that the response has started."""
        if self.request is RequestStage.UNDECIDED:
            self.request = RequestStage.OVERTAKEN
