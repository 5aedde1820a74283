"""The response side of an exchange: one class for each mode of the response body.

For a 200 with usage in its body, the reply to the headers requests the body in chunks;
for any other response, the stream ends.
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
    """Replies to the events of one response.

    Besides ``progress``, its state is the observed decision and the tap that reads the
    body. Decision and outcome together form an observation.
    """

    __slots__ = ("_decided", "_progress", "_tap")

    echoes: ClassVar[bool]
    """Whether Envoy keeps no copy of the body, so that the stream must not end
    early."""
    asks: ClassVar[Continue | AskResponseBody]
    """The reply to the headers of a response whose body is read."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._decided: Decided | None = None
        self._tap: UsageTap | None = None

    def expect(self, decided: Decided) -> None:
        """Prepare to observe the response to a decision."""
        self._decided = decided

    def headers(self, event: ResponseHeaders) -> Step:
        """Reply to the headers."""
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
        """Reply to a part of the body."""
        tap = self._tap
        if tap is None or self._progress.response is not ResponseStage.OBSERVED:
            return self._unobserved(event)
        passed = tap.read(event.body)
        if event.end_of_stream:
            passed += tap.finish()
        observation = None
        if event.end_of_stream or tap.complete:
            # A stream's final event is enough: the end of the body adds nothing, and
            # often does not arrive, because clients disconnect after the final event.
            observation = self._observation(tap)
        return self._observed(event, passed, observation)

    def trailers(self, event: ResponseTrailers) -> Step:
        """Reply to the trailers."""
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
        """Reply to an event that caused an internal error, in full duplex."""

    @abstractmethod
    def _unobserved(self, event: ResponseBody) -> Step:
        """Reply to a part of a body that is not, or no longer, read."""

    @abstractmethod
    def _observed(
        self, event: ResponseBody, passed: bytes, observation: Observation | None
    ) -> Step:
        """Reply to a part of a body that is read.

        Args:
            event: the part.
            passed: the bytes that the client receives instead.
            observation: the response's observation, if the part completes it.
        """


class StreamedResponse(ResponseSide):
    """A body that the router requests in chunks; Envoy keeps a copy of each."""

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
    """A body in full-duplex mode: every part up to the last must be sent back."""

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
    """Return the handler for a response, by the mode in the request's headers."""
    side = _SIDES.get(head.response_mode, StreamedResponse)
    progress.response_echoed = side.echoes
    return side(progress)


_SIDES: dict[BodyMode | None, type[ResponseSide]] = {
    BodyMode.FULL_DUPLEX_STREAMED: EchoedResponse,
}
