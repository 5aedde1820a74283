"""The ext_proc service without a transport: serialized messages in and out.

Synchronous on purpose: nothing here awaits, so a transport answers each read with
one write, and the estimator needs no lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from extproc.exchange.events import (
    Event,
    Observation,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.machine import Exchange, ExchangeSettings, ProtocolError
from extproc.routing.policy import PoolLoad
from extproc.routing.router import Router
from extproc.server.codec import UnknownMessageError, decode, encode
from extproc.server.metrics import Metrics

logger = logging.getLogger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD = "Process"

_PHASES: dict[type[Event], str] = {
    RequestHeaders: "request_headers",
    RequestBody: "request_body",
    RequestTrailers: "request_trailers",
    ResponseHeaders: "response_headers",
    ResponseBody: "response_body",
    ResponseTrailers: "response_trailers",
}


class ExtProcService:
    """Answers ``Process`` streams.

    Args:
        router: shared by all streams.
        settings: of the exchanges.
        sampler: chooses the exchanges to learn from.
        metrics: told every fact.
        loads: what is known of the pools' load.
        defer: runs a call once the reply is on its way; the event loop's
            ``call_soon``. Learning waits there.
    """

    def __init__(
        self,
        router: Router,
        settings: ExchangeSettings,
        sampler: FeedbackSampler,
        metrics: Metrics,
        *,
        loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
        defer: Callable[[Callable[[], None]], object] = lambda call: call(),
    ) -> None:
        self.router = router
        self.metrics = metrics
        self.sampler = sampler
        self._settings = settings
        self._loads = loads
        self._defer = defer

    def open(self) -> Stream:
        """Begin one stream."""
        exchange = Exchange(
            self.router, self._settings, self.sampler.wants, self._loads
        )
        self.metrics.streams_inflight += 1
        return Stream(self, exchange)

    def step(self, exchange: Exchange, data: bytes) -> tuple[Sequence[bytes], bool]:
        """Answer one message of an exchange."""
        began = time.perf_counter()
        try:
            event = decode(data)
            undecided = exchange.decision is None
            step = exchange.receive(event)
        except (ProtocolError, UnknownMessageError) as error:
            # Ending the stream cleanly lets Envoy go on without us; an error status
            # would be a 500 for the client where failure_mode_allow is off.
            self.metrics.protocol_errors.add()
            logger.warning("protocol_error", extra={"fields": {"error": str(error)}})
            return (), True
        if undecided and exchange.decision is not None:
            self.metrics.decided(exchange.decision)
        if step.observation is not None:
            observation = step.observation
            self._defer(lambda: self._learn(observation))
        messages = encode(event, step.reply)
        self.metrics.message_seconds.add(
            time.perf_counter() - began, _PHASES[type(event)]
        )
        return messages, step.end

    def _learn(self, observation: Observation) -> None:
        lesson = self.router.learn(observation.decision, observation.outcome)
        if lesson.skipped is None:
            self.sampler.observed(observation.decision.category)
        self.metrics.observed(observation, lesson)


class Stream:
    """One ``Process`` stream."""

    __slots__ = ("_exchange", "_service")

    def __init__(self, service: ExtProcService, exchange: Exchange) -> None:
        self._service = service
        self._exchange = exchange

    def receive(self, message: bytes) -> tuple[Sequence[bytes], bool]:
        """Take one message; give its replies, and whether the stream ends with them."""
        return self._service.step(self._exchange, message)

    def closed(self) -> None:
        """Note that the stream is over, however it ended; to be called once."""
        metrics = self._service.metrics
        metrics.streams_inflight -= 1
        metrics.ended.add(self._exchange.state.value)
