"""In which order ext_proc's messages come: the states of an exchange and their moves.

States are named for what we wait for. ``TRANSITIONS`` holds every legal move.
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
