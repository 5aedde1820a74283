"""One HTTP exchange as ext_proc shows it: a state machine without effects.

``Exchange.receive(event)`` gives exactly one reply for each event, and over the
whole exchange at most one observation. ``transitions`` has the order of the events.

The request side (measured on Envoy 1.40)::

    headers  path not ours, no body         Continue, end
             over the cap, length unknown   Route to the default pool, end
             else                           AskRequestBody
    body     complete                       Route, end unless chosen for feedback

Full duplex cannot end early and keeps no copy of the body in Envoy: the headers'
reply is withheld until the body is here, then released with it.

The response side, for exchanges chosen for feedback: headers of a 200 with usage
ask for the body in chunks; anything else ends the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from extproc.exchange.body_parser import MAX_BODY_BYTES, BodyParser
from extproc.exchange.decision_token import write_decision_token
from extproc.exchange.events import (
    AskRequestBody,
    AskResponseBody,
    BodyMode,
    Continue,
    Echo,
    Event,
    Observation,
    Release,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Rewrite,
    Route,
    Step,
    Withhold,
)
from extproc.exchange.json_elider import DIRECT_BYTES
from extproc.exchange.openai import Endpoint, ask_for_usage, find_endpoint
from extproc.exchange.transitions import State, after
from extproc.exchange.usage_tap import UsageTap, watch_response
from extproc.routing.policy import PoolLoad, Reason
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router

HEADERS_READ = (
    ":method",
    ":path",
    ":status",
    "content-encoding",
    "content-length",
    "content-type",
    "x-envoy-attempt-count",
)
"""The headers that an exchange looks at, beside the category header."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """What all exchanges share."""

    max_body_bytes: int = MAX_BODY_BYTES
    """Bodies above this are not read. Must not exceed Envoy's buffer limit, or the
    request hangs there."""
    category_header: str = "x-llm-category"
    inject_usage: bool = False
    """Ask for usage in the place of a stream's client that did not."""
    shadow: bool = False
    """Decide and learn, but leave every request on the route that it has."""
    decision_tokens: bool = False
    """Hand each decision out, to come back in the access log; except for those whose
    response is looked at here, as nothing is to be learned twice."""
    headers_read: Mapping[bytes, str] = field(init=False)
    """Names of the headers that an exchange reads, by their bytes on the wire."""

    def __post_init__(self) -> None:
        names = {n.encode(): n for n in (*HEADERS_READ, self.category_header)}
        object.__setattr__(self, "headers_read", names)


class Exchange:
    """One HTTP exchange.

    Args:
        router: decides; shared by all exchanges.
        settings: shared by all exchanges.
        wants_feedback: asked once, after a decision that can be learned from.
        loads: gives what is known of the pools' load.
    """

    def __init__(
        self,
        router: Router,
        settings: ExchangeSettings,
        wants_feedback: Callable[[Decision], bool],
        loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
    ) -> None:
        self.state = State.REQUEST_HEADERS
        self.decision: Decision | None = None
        self.fault: Exception | None = None
        """What went wrong of late, if anything: the request went on regardless. Whoever
        has taken note of it may clear it."""
        self._router = router
        self._settings = settings
        self._wants_feedback = wants_feedback
        self._loads = loads
        self._path = ""
        self._endpoint: Endpoint | None = None
        self._hint: str | None = None
        self._encoding = ""
        self._request_mode: BodyMode | None = None
        self._response_duplex = False
        self._received: bytes | bytearray | memoryview = b""
        self._reading: BodyParser | None = None
        self._withheld = False
        self._follows = False
        self._injected = False
        self._watch: UsageTap | None = None

    @property
    def owes_bodies(self) -> bool:
        """Whether the stream must not just end: what is not echoed would be lost."""
        return self._duplex or self._response_duplex

    @property
    def follows_response(self) -> bool:
        """Whether the stream stays open for the response, and ends with it."""
        return self._follows

    def may_take_long(self, message_bytes: int) -> bool:
        """Whether a message of this size may end a body to read in steps."""
        size = message_bytes + len(self._received)
        return size > DIRECT_BYTES or bool(self._encoding)

    def begin_parsing(self, event: Event) -> BodyParser | None:
        """Begin to read a body that may take long, of which this is the last part.

        Who steps through it before ``receive`` takes the event can do other work in
        between; it is read in any case.

        Returns:
            None where there is nothing to be read.
        """
        match event:
            case RequestBody():
                last, ends = event.body, event.end_of_stream or self._comes_whole
            case RequestTrailers():
                last, ends = b"", True
            case _:
                return None
        decides = self.state is State.REQUEST_BODY and self.decision is None
        passes = self._duplex and not self._withheld
        size = len(self._received) + len(last)
        too_large = size > self._settings.max_body_bytes
        if not ends or not decides or passes or too_large:
            return None
        body = bytes(self._received) + bytes(last) if self._received else last
        self._reading = self._new_reading(body)
        return self._reading

    def _new_reading(self, body: bytes | bytearray | memoryview) -> BodyParser:
        if isinstance(body, bytearray):
            body = bytes(body)
        max_body_bytes = self._settings.max_body_bytes
        return BodyParser(self._path, body, self._encoding, max_body_bytes)

    def receive(self, event: Event) -> Step:
        """Take one event; give its reply.

        Raises:
            ProtocolError: it comes out of order.
        """
        waited_for, self.state = self.state, after(self.state, event)
        held = len(self._received)
        try:
            return self._answer(event, waited_for)
        except Exception as error:
            if not self.owes_bodies:
                raise  # to end the stream is enough: Envoy has the bodies
            self.fault = error
            return self._pass_on(event, held)

    def _answer(self, event: Event, waited_for: State) -> Step:
        match event:
            case RequestHeaders():
                return self._request_headers(event)
            case RequestBody():
                return self._request_body(event, waited_for)
            case RequestTrailers():
                return self._request_trailers(waited_for)
            case ResponseHeaders():
                return self._response_headers(event)
            case ResponseBody():
                return self._response_body(event, waited_for)
            case ResponseTrailers():
                if self._watch is None:
                    return Step(Continue(), end=True)
                self._watch.finish()
                return Step(Continue(), end=True, observation=self._observed())

    def _pass_on(self, event: Event, held: int) -> Step:
        """Full duplex after a fault of ours: everything goes on as it came, at once.

        Args:
            held: bytes of the request withheld before the event.
        """
        withheld, self._withheld = self._withheld, False
        body = bytes(self._received[:held])
        self._received = b""
        self._follows, self._watch = False, None
        if withheld:
            default = self._router.policy.default
            self.decision = Decision(default, Reason.FAULT, body_bytes=len(body))
        match event:
            case RequestBody() if withheld:
                release = Release(None, body + bytes(event.body), event.end_of_stream)
                return Step(release)
            case RequestTrailers() if withheld:
                return Step(Release(None, body, end_of_stream=False, trailers=True))
            case RequestBody() if self._duplex:
                return Step(Echo(bytes(event.body), event.end_of_stream))
            case ResponseBody() if self._response_duplex:
                return Step(Echo(bytes(event.body), event.end_of_stream))
            case _:
                return Step(Continue())

    # The request.

    def _request_headers(self, event: RequestHeaders) -> Step:
        headers = event.headers
        self._request_mode = event.request_mode
        self._response_duplex = event.response_mode is BodyMode.FULL_DUPLEX_STREAMED
        self._path = headers.get(":path", "")
        self._endpoint = find_endpoint(self._path)
        self._hint = headers.get(self._settings.category_header)
        self._encoding = headers.get("content-encoding", "")
        routed = headers.get(":method") == "POST" and self._endpoint is not None
        if event.end_of_stream or (not routed and not self._duplex):
            return Step(Continue(), end=True)
        if not routed:
            return Step(Continue())  # its body is to be echoed
        if self._duplex:
            self._withheld = True
            return Step(Withhold())
        length = _length(headers.get("content-length", ""))
        if length is None:
            return self._fail_open(Reason.LENGTH_UNKNOWN)
        if length > self._settings.max_body_bytes:
            return self._fail_open(Reason.TOO_LARGE, length)
        return Step(AskRequestBody())

    @property
    def _duplex(self) -> bool:
        return self._request_mode is BodyMode.FULL_DUPLEX_STREAMED

    def _fail_open(self, reason: Reason, body_bytes: int = 0) -> Step:
        self.decision = self._decide_without(reason, body_bytes)
        route = Route(
            self.decision,
            shadow=self._settings.shadow,
            decision_token=self._decision_token(),
        )
        return Step(route, end=True)

    def _decide_without(self, reason: Reason, body_bytes: int) -> Decision:
        return self._router.fail_open(reason, body_bytes, self._loads())

    def _request_body(self, event: RequestBody, waited_for: State) -> Step:
        if self._duplex and not self._withheld:
            over = event.end_of_stream and self._may_end
            return Step(Echo(bytes(event.body), event.end_of_stream), end=over)
        if self._withheld and waited_for is not State.REQUEST_BODY:
            return self._overtaken()
        if self.decision is not None or waited_for is not State.REQUEST_BODY:
            return Step(Continue())  # repeated end, or the response is under way
        self._take(event.body)
        too_large = len(self._received) > self._settings.max_body_bytes
        cut_off = (
            self._request_mode is BodyMode.BUFFERED_PARTIAL and not event.end_of_stream
        )
        if too_large or cut_off:
            received = len(self._received)
            self.decision = self._decide_without(Reason.TOO_LARGE, received)
        elif event.end_of_stream or self._comes_whole:
            self._decide()
        else:
            return Step(Withhold() if self._withheld else Continue())
        if self._withheld:
            return self._release(event.end_of_stream)
        assert self.decision is not None
        route = Route(
            self.decision,
            self._replacement(),
            self._settings.shadow,
            self._decision_token(),
        )
        self._received = b""  # we may live on for long
        return Step(route, end=not self._follows)

    def _take(self, body: bytes | memoryview) -> None:
        if not self._received:
            self._received = body  # a buffered body is one message: no copy
            return
        if not isinstance(self._received, bytearray):
            self._received = bytearray(self._received)
        self._received += body

    def _overtaken(self) -> Step:
        # Full duplex, and the response began while the request's headers were withheld:
        # nothing waits for them any more, and a reply would be one out of order.
        self._received = b""
        return Step(Withhold())

    @property
    def _may_end(self) -> bool:
        # In full duplex a response body that is not echoed is lost.
        return not self._follows and not self._response_duplex

    @property
    def _comes_whole(self) -> bool:
        # Buffered, as configured or as asked for: one message, whose end_of_stream is
        # false if trailers follow (which are not sent to us).
        return self._request_mode in (BodyMode.NONE, BodyMode.BUFFERED)

    def _release(self, end_of_stream: bool, *, trailers: bool = False) -> Step:
        over = (end_of_stream or trailers) and self._may_end
        release = Release(
            self.decision,
            bytes(self._received),
            end_of_stream,
            trailers,
            self._settings.shadow,
            self._decision_token(),
        )
        self._withheld = False
        self._received = b""
        return Step(release, end=over)

    def _request_trailers(self, waited_for: State) -> Step:
        if waited_for is State.REQUEST_BODY and self._withheld:
            self._decide()
            return self._release(end_of_stream=False, trailers=True)
        if self._withheld:
            return self._overtaken()
        decided = self.decision is not None or waited_for is not State.REQUEST_BODY
        if decided or self._duplex:
            return Step(Continue(), end=self._may_end)
        # A streamed body that ends in trailers: too late for a route of its own, as the
        # headers have gone on, but not to say what was decided, and to learn.
        self._decide()
        assert self.decision is not None
        self._received = b""
        route = Route(self.decision, shadow=True, decision_token=self._decision_token())
        return Step(route, end=self._may_end)

    def _decision_token(self) -> bytes:
        if self.decision is None or self._follows or not self._settings.decision_tokens:
            return b""
        return write_decision_token(self.decision)

    def _decide(self) -> None:
        try:
            self._estimate()
        except Exception as error:
            # A fault of ours, which the service reports; never the client's error.
            self.fault = error
            self._follows = self._injected = False
            received = len(self._received)
            # Nothing of ours is asked again, the pools' load included.
            self.decision = self._router.fail_open(Reason.FAULT, received)

    def _estimate(self) -> None:
        reading = self._reading or self._new_reading(self._received)
        self._reading = None
        request = reading.finish()
        if isinstance(request, Reason):
            self.decision = self._decide_without(request, len(self._received))
            return
        decision = self._router.route(
            request, self._hint, self._loads(), approximate=True
        )
        may_inject = self._may_inject(request)
        if may_inject:
            decision = replace(decision, usage_not_requested=False)
        self._follows = self._wants_feedback(decision)
        self._injected = self._follows and may_inject
        if self._follows or self._settings.decision_tokens:
            decision = self._router.with_bound(decision)
        else:
            decision = replace(decision, features=None)  # 8 kB that nobody will read
        self.decision = decision

    def _may_inject(self, request: Request) -> bool:
        return (
            self._settings.inject_usage
            and request.stream
            and not request.asks_usage
            and not self._encoding
            and self._comes_whole
            and self._endpoint is not None
            and self._endpoint.stream_options
        )

    def _replacement(self) -> bytes | None:
        if not self._injected:
            return None
        body = ask_for_usage(bytes(self._received))
        self._injected = body is not None
        return body

    # The response.

    def _response_headers(self, event: ResponseHeaders) -> Step:
        if self.decision is None or not self._follows:
            return Step(Continue(), end=not self._response_duplex)
        watch = watch_response(self.decision, event, injected=self._injected)
        if isinstance(watch, Observation):
            self._follows = False
            return Step(Continue(), not self._response_duplex, watch)
        self._watch = watch
        return Step(Continue() if self._response_duplex else AskResponseBody())

    def _response_body(self, event: ResponseBody, waited_for: State) -> Step:
        watch = self._watch
        if watch is None or waited_for is State.DONE:
            if self._response_duplex:
                return Step(Echo(event.body, event.end_of_stream))
            return Step(Continue(), end=True)
        passed = watch.read(event.body)
        observation = None
        over = event.end_of_stream
        if over:
            passed += watch.finish()
            observation = self._observed()
        elif watch.complete:
            # The stream's own last event: the end of the body would tell no more, and
            # often never comes, as clients hang up here.
            observation = self._observed()
            over = not self._response_duplex
        if self._response_duplex:
            return Step(Echo(passed, event.end_of_stream), over, observation)
        if passed != event.body:
            return Step(Rewrite(passed), over, observation)
        return Step(Continue(), over, observation)

    def _observed(self) -> Observation | None:
        watch, self._watch = self._watch, None
        return None if watch is None else watch.observe()


def _length(text: str) -> int | None:
    # The slice: int() refuses texts of thousands of digits.
    digits = text.isascii() and text.isdigit()
    return int(text.lstrip("0")[:20] or "0") if digits else None
