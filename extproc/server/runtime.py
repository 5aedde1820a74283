"""The parts of the server that a new configuration replaces while it serves."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from extproc.config import Config, Mode
from extproc.exchange.events import Observation
from extproc.exchange.machine import ExchangeSettings
from extproc.routing.mergeable import DecayedSums
from extproc.routing.policy import PoolLoad
from extproc.routing.router import Decision, Lesson, Router
from extproc.server.admin.explain import Explainer
from extproc.server.admin.status import StatusReporter
from extproc.server.build import build_router, build_sampler
from extproc.server.observe.advising import Advisor
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.pools.watch import LoadWatch, PoolStatus
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.ext_proc import (
    ExtProcService,
    NewExchange,
    Watcher,
    plain_exchange,
)
from extproc.server.services.in_flight import InFlight

logger = logging.getLogger(__name__)

Known = Callable[[str], Mapping[str, DecayedSums]]
"""Gives what is stored of a component that nobody here has learned into."""

_NOT_LIVE = {
    "server": ("listen", "admin", "transport", "workers", "max_body_bytes", "tls"),
    "state": ("store", "path", "url", "key_prefix", "interval_s"),
    "api": ("http",),
    "recording": ("file", "max_bytes"),
    "otel": ("enabled",),
}
"""Settings that a running server keeps: it would have to let go of its port."""


class Runtime:
    """The router, its feedback and its watch over the pools, as configured last.

    Args:
        config: the first.
        ready: whether new streams are welcome.
        defer: see ``ExtProcService``.
        watchers: told of all that happens, beside those of its own.
        new_exchange: see ``ExtProcService``.
    """

    def __init__(
        self,
        config: Config,
        ready: Callable[[], bool],
        defer: Callable[[Callable[[], None]], object],
        watchers: Sequence[Watcher] = (),
        new_exchange: NewExchange = plain_exchange,
    ) -> None:
        self.config = config
        self.router = build_router(config)
        self._sampler = build_sampler(config.feedback, self.router.policy)
        self._watch = LoadWatch(config.pools, config.load)
        self.advisor = Advisor(self.router.policy)
        self.metrics = Metrics(
            lambda: self.router.ratios.all(),
            self.pools,
            self.risk,
            self.advisor.advice,
        )
        self.history = RecentDecisions(
            time.time, lambda category: self.router.ratios.bytes_per_token(category)
        )
        self.service = ExtProcService(
            self.router,
            _exchange_settings(config),
            self._sampler,
            self.metrics,
            watchers=[self.history, self.advisor, self, *watchers],
            loads=self.loads,
            new_exchange=new_exchange,
            defer=defer,
            in_flight=InFlight(self._landed),
            slices=TimeSlices(defer),
        )
        self.status = StatusReporter(
            self.router,
            self.metrics,
            self.history,
            self.advisor,
            ready,
            time.time,
            loads=self.loads,
            mode=config.mode,
        )

    def decided(self, decision: Decision) -> None:
        """Count a request in before the pool's servers report it."""
        if self.config.mode is Mode.ROUTE:
            self._watch.routed(decision.pool.name)

    def _landed(self, pool: str) -> None:
        if self.config.mode is Mode.ROUTE:
            self._watch.landed(pool)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Nothing to note: what a response teaches is the router's."""

    def loads(self) -> Mapping[str, PoolLoad]:
        """What is known of the pools' load."""
        return self._watch.current()

    def pools(self) -> list[PoolStatus]:
        """What is known of the pools that are watched."""
        return self._watch.statuses()

    def risk(self) -> tuple[float | None, float | None]:
        """The stated and the achieved share of prompts above their bound."""
        margin = self.router.estimator.margin
        return margin.rate, margin.achieved()

    def explainer(self) -> Explainer:
        """Explains decisions as they are made now."""
        limit = self.config.server.max_body_bytes
        return Explainer(self.router, limit, self.loads)

    async def start(self) -> None:
        """Begin to watch the pools.

        Raises:
            ConfigError: a pool's servers have another window than configured.
        """
        await self._watch.start()

    async def stop(self) -> None:
        """Watch no more."""
        await self._watch.stop()

    async def replace(self, config: Config, known: Known) -> list[str]:
        """Serve on with another configuration, and with what was learned.

        Returns:
            The settings that changed but take a restart.

        Raises:
            ConfigError: it cannot be served with; all is as it was.
        """
        config, kept = _keep_what_is_not_live(self.config, config)
        router = build_router(config)
        watch = LoadWatch(config.pools, config.load)
        try:
            await watch.start()
            # Nearly all of it a group at a time, so that requests pass in between.
            for _ in _teach(router, self.router, known):
                await asyncio.sleep(0)
        except BaseException:
            await watch.stop()
            raise
        # From here to the end of the exchange nothing awaits: no request and no
        # lesson falls between the two.
        for _ in _teach(router, self.router, known):
            pass
        if config.feedback != self.config.feedback:
            self._sampler = build_sampler(config.feedback, router.policy)
        self._sampler.limits = router.policy.thresholds
        previous, self._watch = self._watch, watch
        self.config, self.router = config, router
        self.service.reconfigure(router, _exchange_settings(config), self._sampler)
        self.advisor.reconfigure(router.policy)
        self.status.router, self.status.mode = router, config.mode
        await previous.stop()
        return kept


def _exchange_settings(config: Config) -> ExchangeSettings:
    return ExchangeSettings(
        config.server.max_body_bytes,
        config.category.header,
        config.feedback.inject_usage,
        config.mode is Mode.SHADOW,
        config.feedback.access_log,
    )


def _teach(router: Router, previous: Router, known: Known) -> Iterator[None]:
    """Hand on what was learned, one group a step."""
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


def _keep_what_is_not_live(old: Config, new: Config) -> tuple[Config, list[str]]:
    kept = []
    for section, keys in _NOT_LIVE.items():
        before, after = getattr(old, section), getattr(new, section)
        for key in keys:
            if getattr(before, key) != getattr(after, key):
                kept.append(f"{section}.{key}")
                after = dataclasses.replace(after, **{key: getattr(before, key)})
        new = dataclasses.replace(new, **{section: after})
    return new, kept
