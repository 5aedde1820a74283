"""The states of an exchange and their moves: all state that decides what happens next.

``State`` is the order in which Envoy sends its messages, named for the message that we
wait for; ``TRANSITIONS`` holds every legal move of it. What we did so far decides how
a message is answered: ``RequestStage`` and ``ResponseStage``. As in h11, every state
that affects a transition is in this file; the classes that answer list the rest.
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
    """The messages came in an order that ext_proc does not have."""


class State(Enum):
    """What we wait for."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    DONE = "done"

    # Enum's own hashes the name, in Python, and every event looks its move up.
    __hash__ = object.__hash__


MORE, END = False, True

TRANSITIONS: dict[tuple[State, type[Event], bool], State] = {
    (State.REQUEST_HEADERS, RequestHeaders, MORE): State.REQUEST_BODY,
    (State.REQUEST_HEADERS, RequestHeaders, END): State.RESPONSE_HEADERS,
    (State.REQUEST_BODY, RequestBody, MORE): State.REQUEST_BODY,
    (State.REQUEST_BODY, RequestBody, END): State.RESPONSE_HEADERS,
    (State.REQUEST_BODY, RequestTrailers, END): State.RESPONSE_HEADERS,
    # A local reply (413, 408), or a backend that answers before it has read all.
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
    # The rest of a request whose response is under way already.
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
    """What we wait for once an event has come.

    Raises:
        ProtocolError: a move that ``TRANSITIONS`` does not have: Envoy, not a client,
            broke the order.
    """
    try:
        return TRANSITIONS[state, type(event), event.end_of_stream]
    except KeyError:
        raise ProtocolError(
            f"{type(event).__name__} (end_of_stream={event.end_of_stream}) "
            f"while waiting for {state.value}"
        ) from None


class RequestStage(Enum):
    """What became of the request."""

    UNDECIDED = "undecided"
    """Its body is collected for the decision."""
    SETTLED = "settled"
    """A decision was made, or none will be: the rest of it passes."""
    OVERTAKEN = "overtaken"
    """Its response began first: no decision will be made."""


class ResponseStage(Enum):
    """What happens to the response."""

    IGNORED = "ignored"
    """Nothing, or nothing more."""
    AWAITED = "awaited"
    """It was chosen to be observed, and has not begun."""
    OBSERVED = "observed"
    """Its body is read as it passes."""


class Progress:
    """Where an exchange stands.

    Attributes:
        state: the message that we wait for.
        request: what became of the request.
        response: what happens to the response.
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
        """Whether the stream may end with the request: its response is not needed."""
        return self.response is ResponseStage.IGNORED and not self.response_echoed

    @property
    def awaits_body(self) -> bool:
        """Whether a body is to come of which the gateway keeps a copy."""
        return (
            self.state is State.REQUEST_BODY
            and self.request is RequestStage.UNDECIDED
            and not self.request_echoed
        )

    def settle(self, follows_response: bool = False) -> None:
        """Note that a decision was made, or that none will be."""
        self.request = RequestStage.SETTLED
        if follows_response:
            self.response = ResponseStage.AWAITED

    def ignore_response(self) -> None:
        """Observe the response no more."""
        self.response = ResponseStage.IGNORED

    def respond(self) -> None:
        """Note that the response has begun."""
        if self.request is RequestStage.UNDECIDED:
            self.request = RequestStage.OVERTAKEN
