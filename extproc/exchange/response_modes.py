"""The response side of an exchange: one class for each mode of the response body.

The headers of a 200 with usage in its body ask for the body, in parts as it comes;
any other response ends the stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from extproc.exchange.events import (
    AskResponseBody,
    BodyMode,
    Continue,
    Decided,
    Echo,
    Observation,
    RequestHeaders,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Rewrite,
    Step,
)
from extproc.exchange.transitions import Progress, ResponseStage
from extproc.exchange.usage_tap import UsageTap, watch_response

Response = ResponseHeaders | ResponseBody | ResponseTrailers


class ResponseSide(ABC):
    """Answers the events of one response.

    Beside ``progress``, it holds the decision that the response is observed for, and
    the tap that reads its body: they are what an observation is made of.
    """

    __slots__ = ("_decided", "_progress", "_tap")

    echoes: ClassVar[bool]
    """Whether Envoy keeps no copy of the body, and the stream must not end early."""
    asks: ClassVar[Continue | AskResponseBody]
    """The answer to the headers of a response whose body is to be read."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._decided: Decided | None = None
        self._tap: UsageTap | None = None

    def expect(self, decided: Decided) -> None:
        """Prepare to observe the response to a decision."""
        self._decided = decided

    def headers(self, event: ResponseHeaders) -> Step:
        """Answer the headers."""
        self._progress.respond()
        if self._progress.response is not ResponseStage.AWAITED:
            return Step(Continue(), end=not self.echoes)
        assert self._decided is not None
        injected = self._decided.body is not None
        watch = watch_response(self._decided.decision, event, injected=injected)
        if isinstance(watch, Observation):
            self._progress.response = ResponseStage.IGNORED
            return Step(Continue(), not self.echoes, watch)
        self._tap = watch
        self._progress.response = ResponseStage.OBSERVED
        return Step(self.asks)

    def body(self, event: ResponseBody) -> Step:
        """Answer a part of the body."""
        tap = self._tap
        if tap is None or self._progress.response is not ResponseStage.OBSERVED:
            return self._unobserved(event)
        passed = tap.read(event.body)
        if event.end_of_stream:
            passed += tap.finish()
        observation = None
        if event.end_of_stream or tap.complete:
            # A stream's own last event is enough: the end of the body would tell no
            # more, and often never comes, as clients hang up here.
            observation = self._observation(tap)
        return self._observed(event, passed, observation)

    def trailers(self, event: ResponseTrailers) -> Step:
        """Answer the trailers."""
        tap = self._tap
        if tap is None or self._progress.response is not ResponseStage.OBSERVED:
            return Step(Continue(), end=True)
        tap.finish()
        return Step(Continue(), end=True, observation=self._observation(tap))

    def _observation(self, tap: UsageTap) -> Observation:
        self._tap = None
        self._progress.response = ResponseStage.IGNORED
        return tap.observe()

    @abstractmethod
    def give_up(self, event: Response) -> Step:
        """Answer an event that led to an internal error, in full duplex."""

    @abstractmethod
    def _unobserved(self, event: ResponseBody) -> Step:
        """Answer a part of a body that is not read, or not any more."""

    @abstractmethod
    def _observed(
        self, event: ResponseBody, passed: bytes, observation: Observation | None
    ) -> Step:
        """Answer a part of a body that is read.

        Args:
            event: the part.
            passed: the bytes that the client gets in its place.
            observation: of the response, if the part completes it.
        """


class StreamedResponse(ResponseSide):
    """A body in parts, of which Envoy keeps a copy. Envoy sends it on request only."""

    __slots__ = ()
    echoes = False
    asks = AskResponseBody()

    def give_up(self, event: Response) -> Step:
        return Step(Continue())

    def _unobserved(self, event: ResponseBody) -> Step:
        return Step(Continue(), end=True)

    def _observed(
        self, event: ResponseBody, passed: bytes, observation: Observation | None
    ) -> Step:
        end = observation is not None
        if passed != event.body:
            return Step(Rewrite(passed), end, observation)
        return Step(Continue(), end, observation)


class EchoedResponse(ResponseSide):
    """A body in full duplex: every part is sent on, to its end."""

    __slots__ = ()
    echoes = True
    asks = Continue()

    def give_up(self, event: Response) -> Step:
        if isinstance(event, ResponseBody):
            return Step(Echo(event.body, event.end_of_stream))
        return Step(Continue())

    def _unobserved(self, event: ResponseBody) -> Step:
        return Step(Echo(event.body, event.end_of_stream))

    def _observed(
        self, event: ResponseBody, passed: bytes, observation: Observation | None
    ) -> Step:
        echo = Echo(passed, event.end_of_stream)
        return Step(echo, event.end_of_stream, observation)


def response_side(head: RequestHeaders, progress: Progress) -> ResponseSide:
    """Choose how a response is answered, by its mode in the request's headers."""
    side = _SIDES.get(head.response_mode, StreamedResponse)
    progress.response_echoed = side.echoes
    return side(progress)


_SIDES: dict[BodyMode | None, type[ResponseSide]] = {
    BodyMode.FULL_DUPLEX_STREAMED: EchoedResponse,
}
