"""The ext_proc service, which exchanges serialized messages with any transport.

The service is synchronous by design: no method awaits, so a transport answers each read
with one write, and the estimator needs no lock.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from extproc.exchange.events import Decided, Observation
from extproc.routing.models import AnyRouter
from extproc.routing.router import Decision, Lesson
from extproc.rpc.call import Call, Send
from extproc.server.in_force import InForce
from extproc.server.observe.metrics import Metrics
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.ext_proc_stream import ExtProcStream
from extproc.server.services.health import EXT_PROC
from extproc.server.services.in_flight import InFlight
from extproc.server.services.requested_bodies import Later, RequestedBodies
from extproc.server.services.watchers import (
    DecisionWatcher,
    ObservationWatcher,
    Tracer,
)

logger = logging.getLogger(__name__)

PROCESS = f"/{EXT_PROC}/Process"


class ExtProcService:
    """Serves ``Process`` streams.

    Args:
        in_force: holder of the configuration. A stream keeps the configuration that it
            started with.
        metrics: counts all events.
        decision_watchers: notified of decisions in addition to the metrics.
        observation_watchers: notified of responses in addition to the metrics.
        tracer: records spans; None for no tracing.
        defer: schedules a call after the reply is sent, such as the event loop's
            ``call_soon``. Used for learning.
        in_flight: tracks the requests in flight whose end will be reported.
        slices: runs the parsing steps of several bodies in turn; None to parse each
            body in one step.
        later: schedules a call after a number of seconds, such as the event loop's
            ``call_later``. By default a requested body has no timeout.
        clock: seconds, for measuring answer times.
    """

    def __init__(
        self,
        in_force: InForce,
        metrics: Metrics,
        *,
        decision_watchers: Sequence[DecisionWatcher] = (),
        observation_watchers: Sequence[ObservationWatcher] = (),
        tracer: Tracer | None = None,
        defer: Callable[[Callable[[], None]], object] = lambda call: call(),
        in_flight: InFlight | None = None,
        slices: TimeSlices | None = None,
        later: Later = lambda seconds, call: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.in_force = in_force
        self.metrics = metrics
        self.in_flight = InFlight(lambda pool: None) if in_flight is None else in_flight
        self._decision_watchers = (metrics, *decision_watchers)
        self._observation_watchers = (metrics, *observation_watchers)
        self.tracer = tracer
        self._defer = defer
        self.slices = slices
        self.clock = clock
        self.requested_bodies = RequestedBodies(
            in_force, later, clock, metrics.bodies_lost
        )
        self.opened = 0
        """Number of streams opened since the start."""
        self._faults_logged: set[str] = set()

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Open a ``Process`` stream; return None for any other method."""
        if path != PROCESS:
            return None
        self.opened += 1
        self.metrics.streams_inflight += 1
        return ExtProcStream(self, self.in_force.now.decider, headers, send)

    def decided(self, decision: Decision) -> None:
        """Notify all watchers of a decision; never raises."""
        try:
            for watcher in self._decision_watchers:
                watcher.decided(decision)
        except Exception as error:  # the decision must still be sent
            self.fault(error)

    def trace(
        self, decided: Decided, metadata: Mapping[str, str], opened_s: float
    ) -> None:
        """Record the span of an exchange's decision; never raises."""
        assert self.tracer is not None
        try:
            self.tracer.record(decided, metadata, self.clock() - opened_s)
        except Exception as error:  # the decision must still be sent
            self.fault(error)

    def learn_later(self, observation: Observation) -> None:
        """Learn from a response after pending replies are sent; never raises."""
        self._defer(partial(self._learn, observation))

    def _learn(self, observation: Observation) -> None:
        try:
            self.learn(observation)
        except Exception as error:
            self.fault(error)

    def learn(self, observation: Observation) -> Lesson:
        """Learn from a response, and notify all watchers of the lesson."""
        now = self.in_force.now
        lesson = now.router.learn(observation.decision, observation.outcome)
        if lesson.error_ratio is not None:
            now.sampler.observed(observation.decision, lesson.error_ratio)
        for watcher in self._observation_watchers:
            watcher.observed(observation, lesson)
        return lesson

    @property
    def router(self) -> AnyRouter:
        """The router in force."""
        return self.in_force.now.router

    def fault(self, error: Exception) -> None:
        """Count an internal error, and log the first error at each place in the code.

        The message is omitted because it may quote a body.
        """
        self.metrics.faults.add()
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        if at not in self._faults_logged:
            self._faults_logged.add(at)
            fields = {"error": type(error).__name__, "at": at}
            logger.error("fault", extra={"fields": fields})

    def protocol_error(self, error: Exception) -> None:
        """Count and log an invalid or unexpected message from Envoy."""
        self.metrics.protocol_errors.add()
        logger.warning("protocol_error", extra={"fields": {"error": str(error)}})
