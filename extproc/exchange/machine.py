"""One HTTP exchange in ext_proc: a state machine without side effects.

``Exchange.receive(event)`` returns exactly one step for each event, and at most one
decision and one observation over the whole exchange. ``transitions`` defines the order
of events and all state that determines the next step; ``request_modes`` and
``response_modes`` have one class for each body mode, chosen when the request's headers
arrive.
"""

from __future__ import annotations

from msgspec.structs import replace

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.deciding import Decider
from extproc.exchange.events import (
    Continue,
    Event,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Step,
)
from extproc.exchange.request_modes import request_side
from extproc.exchange.request_side import RequestSide, Unread
from extproc.exchange.response_modes import ResponseSide, response_side
from extproc.exchange.transitions import Progress, State, after
from extproc.routing.router import Decision

_CONTENT_TOO_LARGE = "413"
"""Envoy's status if a body exceeds its limit; no server has seen that request."""


class Exchange:
    """One HTTP exchange.

    Its state is ``progress``, the handlers of request and response (chosen when the
    request's headers arrive, and never changed), the decision (for inspection), and the
    body that is being parsed, if any.

    Args:
        decider: makes the decisions; shared by all exchanges.
    """

    __slots__ = (
        "_decider",
        "_progress",
        "_request",
        "_response",
        "_unread",
        "decision",
    )

    def __init__(self, decider: Decider) -> None:
        self.decision: Decision | None = None
        """The decision, or None before it is made."""
        self._decider = decider
        self._progress = Progress()
        self._request: RequestSide
        self._response: ResponseSide
        self._unread: Unread | None = None

    def __repr__(self) -> str:
        progress, decision = self._progress, self.decision
        state = progress.state
        sides = ""
        if state is not State.REQUEST_HEADERS:
            sides = f" {type(self._request).__name__} {type(self._response).__name__}"
        made = f"{decision.pool.name} ({decision.reason})" if decision else "none"
        return (
            f"<Exchange{sides} waits for {state.value}, request "
            f"{progress.request.value}, response {progress.response.value}, "
            f"decision {made}>"
        )

    @property
    def state(self) -> State:
        """The next message that the exchange expects."""
        return self._progress.state

    @property
    def owes_bodies(self) -> bool:
        """Whether ending the stream early would lose body bytes."""
        return self._progress.owes_bodies

    @property
    def awaits_body(self) -> bool:
        """Whether the gateway keeps the request until its body has arrived here.

        If so, nothing is lost by ending the stream: the request then continues without
        a decision.
        """
        return self._progress.awaits_body

    def lose_body(self) -> None:
        """Record that the expected body will not arrive."""
        self._request.lost()

    def receive(self, event: Event) -> Step | BodyParser:
        """Process one event.

        Returns:
            The resulting step, or a parser if the event completes a body that takes
            long to parse: ``resume`` then parses the rest and returns the step. Other
            work can run between the parser's steps, but no further event may be
            received.

        Raises:
            ProtocolError: the event is out of order.
            Exception: an internal error, if no data is lost by ending the stream.
        """
        state = after(self._progress.state, event)
        result: Step | Unread
        try:
            match event:
                case RequestBody():
                    result = self._request.body(event)
                case RequestHeaders():
                    result = self._request_headers(event)
                case ResponseBody():
                    result = self._response.body(event)
                case ResponseHeaders():
                    result = self._response_headers(event)
                case RequestTrailers():
                    result = self._request.trailers(event)
                case ResponseTrailers():
                    result = self._response.trailers(event)
        except Exception as error:
            if not self._progress.owes_bodies:
                raise
            result = self._give_up(event, error)
        if isinstance(result, Unread):
            self._unread = result
            return result.parser
        return self._advance(state, result)

    def resume(self) -> Step:
        """Return the step for the event whose body was parsed.

        Raises:
            Exception: an internal error, if no data is lost by ending the stream.
        """
        assert self._unread is not None
        unread, self._unread = self._unread, None
        try:
            step = unread.conclude()
        except Exception as error:
            if not self._progress.owes_bodies:
                raise
            step = self._give_up(unread.event, error)
        return self._advance(after(self._progress.state, unread.event), step)

    def _request_headers(self, event: RequestHeaders) -> Step:
        self._response = response_side(event, self._progress)
        self._request = request_side(self._decider, event, self._progress)
        return self._request.headers()

    def _response_headers(self, event: ResponseHeaders) -> Step:
        awaited = self._progress.awaits_body
        step = self._response.headers(event)
        if awaited and event.headers.get(":status") == _CONTENT_TOO_LARGE:
            self._request.lost()
            return replace(step, refused=True)
        return step

    def _advance(self, state: State, step: Step) -> Step:
        self._progress.state = state
        if step.decided is not None:
            self.decision = step.decided.decision
            if step.decided.follows_response:
                self._response.expect(step.decided)
        return step

    def _give_up(self, event: Event, error: Exception) -> Step:
        """After an internal error in full duplex, pass everything through unchanged.

        Ending the stream instead would lose the bodies, because Envoy keeps no copy of
        them.
        """
        self._progress.ignore_response()
        match event:
            case RequestHeaders():
                self._progress.settle()
                step = Step(Continue())
            case RequestBody() | RequestTrailers():
                step = self._request.give_up(event)
            case _:
                step = self._response.give_up(event)
        return replace(step, fault=error)
