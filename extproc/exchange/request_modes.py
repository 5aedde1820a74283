"""The request side of an exchange: one class for each mode of the request body.

Measured on Envoy 1.40::

    headers  path not routed, no body       Continue, end
             over the cap or the gateway's  Route to the default pool, end
             else                           AskRequestBody
    body     complete                       Route, end unless the response is observed

A body of unknown length is requested like any other: for every split and delay
that was tested, its BUFFERED message arrived complete and Envoy used the decided route.
If such a body exceeds Envoy's own limit, Envoy answers 413 before the router sees the
body.

In full duplex, the stream cannot end early, because Envoy keeps no copy of the body.
The reply to the headers is withheld until the body is complete, then sent with it.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.deciding import Body, Decider
from extproc.exchange.events import (
    AskRequestBody,
    BodyMode,
    Continue,
    Decided,
    Echo,
    NotRouted,
    Release,
    RequestBody,
    RequestHead,
    RequestHeaders,
    RequestTrailers,
    Route,
    Step,
    Withhold,
)
from extproc.exchange.openai import RESPONSES
from extproc.exchange.paths import Target
from extproc.exchange.request_side import (
    EchoedRequest,
    RequestSide,
    Rest,
    Unread,
    UnreadRequest,
    echo,
)
from extproc.exchange.transitions import Progress, RequestStage
from extproc.routing.policy import Reason


class _ReadRequest(RequestSide):
    """A request whose body is collected before the decision.

    Besides ``progress``, the only state is the body received so far, whose size
    determines whether the body is over the cap.

    Args:
        decider: makes the decision; shared by all exchanges.
        head: the request's headers.
        progress: the exchange's state.
    """

    __slots__ = ("_decider", "_head", "_received")

    replaceable = False
    """Whether Envoy accepts a replacement for the body."""

    def __init__(self, decider: Decider, head: RequestHead, progress: Progress) -> None:
        self._progress = progress
        self._decider = decider
        self._head = head
        self._received: Body = b""

    def body(self, event: RequestBody) -> Step | Unread:
        if self._progress.request is not RequestStage.UNDECIDED:
            return self._late_body(event)
        if self._received:
            self._append(event.body)
        else:
            self._received = event.body  # no copy: a buffered body is one message
        if len(self._received) > self._decider.settings.max_body_bytes:
            return self._leave_unread(Reason.TOO_LARGE, event)
        return self._collected(event)

    def trailers(self, event: RequestTrailers) -> Step | Unread:
        if self._progress.request is not RequestStage.UNDECIDED:
            return self._late_trailers()
        return self._read(event)

    def _conclude(self, event: Rest, parser: BodyParser) -> Step:
        fault = None
        try:
            decided = self._decider.decide(
                self._head, parser, self._received, replaceable=self.replaceable
            )
        except Exception as error:  # reported by the service; the request continues
            fault = error
            decided = self._decider.after_fault(self._head, len(self._received))
        return self._settle(decided, event, fault)

    def _read(self, event: Rest) -> Step | Unread:
        """Parse the complete body: at once, or in steps if parsing may take long."""
        parser = self._decider.parser(self._head, self._received)
        if parser.may_take_long:
            return Unread(event, parser, partial(self._conclude, event, parser))
        return self._conclude(event, parser)

    def _leave_unread(self, reason: Reason, event: Rest) -> Step:
        received = len(self._received)
        return self._settle(
            self._decider.fail_open(self._head, reason, received), event
        )

    def _settle(
        self, decided: Decided | NotRouted, event: Rest, fault: Exception | None = None
    ) -> Step:
        if isinstance(decided, NotRouted):
            self._progress.settle()
            step = self._undecided(decided, event, fault)
        else:
            self._progress.settle(decided.follows_response)
            step = self._decided(decided, event, fault)
        self._received = b""  # frees the body: the exchange may live on for minutes
        return step

    def _append(self, body: bytes | memoryview) -> None:
        if not isinstance(self._received, bytearray):
            self._received = bytearray(self._received)
        self._received += body

    @abstractmethod
    def _collected(self, event: RequestBody) -> Step | Unread:
        """Reply to a part of a body within the cap."""

    @abstractmethod
    def _decided(self, decided: Decided, event: Rest, fault: Exception | None) -> Step:
        """Reply to the event with a decision."""

    @abstractmethod
    def _undecided(
        self, reason: NotRouted, event: Rest, fault: Exception | None
    ) -> Step:
        """Reply to the event without a decision."""

    @abstractmethod
    def _late_body(self, event: RequestBody) -> Step:
        """Reply to a part of the body that arrives after the decision."""

    @abstractmethod
    def _late_trailers(self) -> Step:
        """Reply to trailers that arrive after the decision."""


class StreamedRequest(_ReadRequest):
    """A body that arrives in parts, while Envoy keeps a copy of each.

    The body ends with the last part. This class is also used if the mode is unknown
    (Envoy before 1.34).
    """

    __slots__ = ("_length",)

    def headers(self) -> Step:
        length = _length(self._head.headers.get("content-length", ""))
        self._length = length
        settings = self._decider.settings
        if length is None and not settings.reads_unknown_length:
            return self._leave_unread_at_headers(Reason.LENGTH_UNKNOWN, 0)
        if length is not None and length > settings.max_body_bytes:
            return self._leave_unread_at_headers(Reason.TOO_LARGE, length)
        if not self._decider.gateway_limit.requests(length):
            return self._leave_unread_at_headers(Reason.GATEWAY_LIMIT, length or 0)
        return _ASK_REQUEST_BODY

    def body(self, event: RequestBody) -> Step | Unread:
        if self._progress.request is RequestStage.UNDECIDED:
            self._decider.gateway_limit.arrived(self._length, len(event.body))
        return super().body(event)

    def lost(self) -> None:
        self._decider.gateway_limit.lost(self._length)

    def give_up(self, event: Rest) -> Step:
        self._progress.settle()
        return Step(Continue())

    def _leave_unread_at_headers(self, reason: Reason, body_bytes: int) -> Step:
        decided = self._decider.fail_open(self._head, reason, body_bytes)
        self._progress.settle()
        if isinstance(decided, NotRouted):
            return Step(Continue(), end=True, not_routed=decided)
        return Step(_route(self._decider, decided), end=True, decided=decided)

    def _collected(self, event: RequestBody) -> Step | Unread:
        return self._read(event) if event.end_of_stream else Step(Continue())

    def _decided(self, decided: Decided, event: Rest, fault: Exception | None) -> Step:
        if isinstance(event, RequestTrailers):
            # Envoy has sent the headers, so the route is fixed. The decision is still
            # reported, and the router still learns from the response.
            shadow, end = True, self._progress.may_end
        else:
            shadow = self._decider.settings.shadow
            end = not decided.follows_response
        route = Route(decided.decision, decided.body, shadow, decided.decision_token)
        return Step(route, end, None, decided, fault)

    def _undecided(
        self, reason: NotRouted, event: Rest, fault: Exception | None
    ) -> Step:
        trailers = isinstance(event, RequestTrailers)
        end = self._progress.may_end if trailers else True
        return Step(Continue(), end, fault=fault, not_routed=reason)

    def _late_body(self, event: RequestBody) -> Step:
        return Step(Continue())  # a repeated end, or the response has started

    def _late_trailers(self) -> Step:
        return Step(Continue(), end=self._progress.may_end)


class BufferedRequest(StreamedRequest):
    """A body in one message, as configured or requested.

    Its ``end_of_stream`` is false if trailers follow.
    """

    __slots__ = ()
    replaceable = True

    def _collected(self, event: RequestBody) -> Step | Unread:
        return self._read(event)


class PartialRequest(StreamedRequest):
    """A body in one message, truncated at Envoy's limit."""

    __slots__ = ()

    def _collected(self, event: RequestBody) -> Step | Unread:
        if not event.end_of_stream:
            return self._leave_unread(Reason.TOO_LARGE, event)
        return self._read(event)


class FullDuplexRequest(_ReadRequest):
    """A body that is withheld with the headers and then sent; Envoy keeps no copy."""

    __slots__ = ()
    echoes = True

    def headers(self) -> Step:
        return Step(Withhold())

    def give_up(self, event: Rest) -> Step:
        if self._progress.request is not RequestStage.UNDECIDED:
            return echo(event)
        self._progress.settle()
        body, self._received = bytes(self._received), b""
        decided = self._decider.last_resort(self._head, len(body))
        return Step(_release(None, body, event), decided=decided)

    def _collected(self, event: RequestBody) -> Step | Unread:
        return self._read(event) if event.end_of_stream else Step(Withhold())

    def _decided(self, decided: Decided, event: Rest, fault: Exception | None) -> Step:
        over = event.end_of_stream and self._progress.may_end
        release = _release(
            decided, bytes(self._received), event, shadow=self._decider.settings.shadow
        )
        return Step(release, over, decided=decided, fault=fault)

    def _undecided(
        self, reason: NotRouted, event: Rest, fault: Exception | None
    ) -> Step:
        over = event.end_of_stream and self._progress.may_end
        release = _release(None, bytes(self._received), event)
        return Step(release, over, fault=fault, not_routed=reason)

    def _late_body(self, event: RequestBody) -> Step:
        if self._progress.request is RequestStage.OVERTAKEN:
            return self._overtaken()
        over = event.end_of_stream and self._progress.may_end
        return Step(Echo(bytes(event.body), event.end_of_stream), end=over)

    def _late_trailers(self) -> Step:
        if self._progress.request is RequestStage.OVERTAKEN:
            return self._overtaken()
        return Step(Continue(), end=self._progress.may_end)

    def _overtaken(self) -> Step:
        # The response started while the request's headers were withheld: Envoy no
        # longer waits for a reply to the headers, and would reject one as out of order.
        self._received = b""
        return Step(Withhold())


def request_side(
    decider: Decider, event: RequestHeaders, progress: Progress
) -> RequestSide:
    """Return the handler for a request, by its headers and its body's mode."""
    paths = decider.settings.paths
    path = event.headers.get(":path", "")
    target = paths.find(path)
    if target is not None and _has_body(event):
        side = _READ.get(event.request_mode, StreamedRequest)
        progress.request_echoed = side.echoes
        return side(decider, RequestHead(event.headers, target), progress)
    duplex = event.request_mode is BodyMode.FULL_DUPLEX_STREAMED
    echoes = duplex and not event.end_of_stream
    progress.request_echoed = echoes
    result: Decided | NotRouted
    if paths.is_stored_response(path):
        result = decider.keep(RequestHead(event.headers, Target(RESPONSES)))
    else:
        result = _why_not(event, target, unread=paths.is_unread(path))
    if isinstance(result, NotRouted):
        answer = Step(Continue(), not echoes, not_routed=result)
    else:
        answer = Step(_route(decider, result), not echoes, None, result)
    passed = EchoedRequest if echoes else UnreadRequest
    return passed(progress, answer)


def _has_body(event: RequestHeaders) -> bool:
    return event.headers.get(":method") == "POST" and not event.end_of_stream


def _why_not(
    event: RequestHeaders, target: Target | None, *, unread: bool
) -> NotRouted:
    if event.headers.get(":method") != "POST":
        return NotRouted.METHOD
    if target is not None:
        return NotRouted.NO_BODY
    return NotRouted.UNREAD if unread else NotRouted.PATH


_ASK_REQUEST_BODY = Step(AskRequestBody())

_READ: dict[BodyMode | None, type[_ReadRequest]] = {
    BodyMode.NONE: BufferedRequest,  # the mode requested in the reply to the headers
    BodyMode.BUFFERED: BufferedRequest,
    BodyMode.BUFFERED_PARTIAL: PartialRequest,
    BodyMode.STREAMED: StreamedRequest,
    BodyMode.FULL_DUPLEX_STREAMED: FullDuplexRequest,
}


def _route(decider: Decider, decided: Decided) -> Route:
    shadow = decider.settings.shadow
    return Route(decided.decision, None, shadow, decided.decision_token)


def _release(
    decided: Decided | None, body: bytes, event: Rest, *, shadow: bool = False
) -> Release:
    trailers = isinstance(event, RequestTrailers)
    return Release(
        None if decided is None else decided.decision,
        body,
        event.end_of_stream and not trailers,
        trailers,
        shadow,
        b"" if decided is None else decided.decision_token,
    )


def _length(text: str) -> int | None:
    # Slice first: int() rejects texts of thousands of digits.
    digits = text.isascii() and text.isdigit()
    return int(text.lstrip("0")[:20] or "0") if digits else None
