"""The running server: the configuration in force, pool watches and reloads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping

from extproc.config import Config, Mode
from extproc.routing.mergeable import DecayedSums, Mergeable
from extproc.routing.models import AnyRouter
from extproc.routing.router import Decision
from extproc.schema import keep_until_restart
from extproc.server.admin.explain import Explainer
from extproc.server.admin.status import StatusReporter
from extproc.server.build import Parts, build_generation
from extproc.server.in_force import InForce
from extproc.server.observe.advising import Advisor
from extproc.server.observe.gauges import InForceCollector
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.timeline import Timeline
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.ext_proc import ExtProcService
from extproc.server.services.in_flight import InFlight
from extproc.server.services.requested_bodies import Later
from extproc.server.services.watchers import ObservationWatcher

Known = Callable[[str], Mapping[str, DecayedSums]]
"""Function that returns the stored state of a component that has learned nothing in
this process yet."""


class Runtime:
    """All components between the transports and the configuration in force.

    Args:
        parts: parts built from the first configuration.
        ready: whether the server accepts new streams.
        defer, later: see ``ExtProcService``.
    """

    def __init__(
        self,
        parts: Parts,
        ready: Callable[[], bool],
        defer: Callable[[Callable[[], None]], object],
        later: Later = lambda seconds, call: None,
    ) -> None:
        self.in_force = in_force = InForce(parts.first)
        self._conversations = parts.conversations
        self.metrics = Metrics()
        self.metrics.registry.register(InForceCollector(in_force))
        recent = RecentDecisions(in_force, time.time)
        advisor = Advisor(in_force)
        requests = RequestsByPool(in_force)
        observation_watchers: list[ObservationWatcher] = [recent, advisor]
        if parts.recording is not None:
            observation_watchers.append(parts.recording)
        if parts.tracing is not None:
            observation_watchers.append(parts.tracing)
        self.service = ExtProcService(
            in_force,
            self.metrics,
            decision_watchers=[recent, advisor, requests],
            observation_watchers=observation_watchers,
            tracer=parts.tracing,
            defer=defer,
            in_flight=InFlight(requests.ended),
            slices=TimeSlices(defer),
            later=later,
        )
        self.timeline = Timeline(self.metrics, recent, time.time)
        self.status = StatusReporter(
            in_force, self.metrics, recent, self.timeline, ready, time.time
        )
        self.explainer = Explainer(in_force)

    def learners(self) -> list[Mergeable]:
        """Return the current learners, whose state is stored and shared."""
        return self.in_force.now.router.learners

    async def start(self) -> None:
        """Start watching the pools.

        Raises:
            ConfigError: a pool's servers have another max_model_len than configured.
        """
        await self.in_force.now.watch.start()

    async def stop(self) -> None:
        """Stop watching the pools."""
        await self.in_force.now.watch.stop()

    async def replace(self, config: Config, known: Known) -> list[str]:
        """Apply another configuration, keeping the learned state.

        Returns:
            The changed settings that need a restart.

        Raises:
            ConfigError: the new configuration cannot be applied. The configuration in
                force stays.
        """
        previous = self.in_force.now
        config, kept = keep_until_restart(previous.config, config)
        following = build_generation(config, previous, self._conversations)
        try:
            await following.watch.start()
            # Transfer most groups with a pause after each group, so that requests are
            # served in the pauses.
            for _ in _teach(following.router, previous.router, known):
                await asyncio.sleep(0)
        except BaseException:
            await following.watch.stop()
            raise
        # There is no await between this point and the assignment, so no request or
        # lesson is handled before the assignment.
        for _ in _teach(following.router, previous.router, known):
            pass
        self.in_force.now = following
        await previous.watch.stop()
        return kept


class RequestsByPool:
    """Counts the requests in flight by pool between two reports of the servers' load.

    Only requests that are routed by their decision are counted, so none are counted in
    shadow mode.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def decided(self, decision: Decision) -> None:
        """Count the start of a request."""
        now = self._in_force.now
        if now.config.mode is Mode.ROUTE:
            now.watch.routed(decision.pool.name)

    def ended(self, pool: str) -> None:
        """Count the end of a request."""
        now = self._in_force.now
        if now.config.mode is Mode.ROUTE:
            now.watch.landed(pool)


def _teach(router: AnyRouter, previous: AnyRouter, known: Known) -> Iterator[None]:
    """Transfer the learned state to a new router, one group per step."""
    learned = {learner.component: learner for learner in previous.learners}
    for learner in router.learners:
        before = learned.get(learner.component)
        if before is None:
            learner.restore(known(learner.component))
            continue
        for key in before.group_keys():
            group = before.group(key)
            if group is not None:
                learner.restore({key: group})
            yield
