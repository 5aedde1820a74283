"""The report of /status on the server, its work and its learned state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import UNSET
from prometheus_client.registry import Collector

import extproc
from extproc.routing.advice import BudgetCounts
from extproc.routing.models import ModelRouter
from extproc.routing.policy import IDLE, Pool, PoolLoad
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.advising import advise_now, report_budgets
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.report import (
    BodiesReport,
    EndpointReport,
    ModelReport,
    PoolReport,
    StatusReport,
)
from extproc.server.observe.timeline import Timeline
from extproc.server.pools.watch import EndpointStatus


class StatusReporter:
    """Reports the state of one server; a report takes no time until it is requested.

    Args:
        in_force: holder of the pools, estimator and ratios.
        metrics: source of the counts.
        recent: source of the last decisions and the learning curves.
        timeline: source of the counts of the last fifteen minutes.
        ready: whether the server accepts new streams.
        clock: seconds since the epoch; also read at construction, for the uptime.
    """

    def __init__(
        self,
        in_force: InForce,
        metrics: Metrics,
        recent: RecentDecisions,
        timeline: Timeline,
        ready: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._in_force = in_force
        self._metrics = metrics
        self._recent = recent
        self._timeline = timeline
        self._ready = ready
        self._clock = clock
        self._started_s = clock()

    def report(self) -> StatusReport:
        """Report the whole state."""
        now, metrics = self._in_force.now, self._metrics
        router = now.router
        by_pool = _counts(metrics.decisions, "pool")
        models = self._report_models(now)
        advice = advise_now(now)
        busiest = max(now.budgets, key=lambda name: now.budgets[name].requests)
        loads = now.loads()
        endpoints = now.watch.endpoints()
        return StatusReport(
            version=extproc.__version__,
            ready=self._ready(),
            mode=str(now.config.mode),
            uptime_s=round(self._clock() - self._started_s, 1),
            estimator=router.estimator.name,
            decisions=by_pool.total(),
            pools=[
                _report_pool(
                    pool,
                    loads.get(pool.name, IDLE),
                    by_pool,
                    endpoints.get(pool.name, ()),
                )
                for each in router.routers
                for pool in each.policy.pools
            ],
            reasons=_counts(metrics.decisions, "reason"),
            categories=self._recent.categories(_counts(metrics.decisions, "category")),
            bytes_per_token=router.ratios.all(),
            risk=self._recent.risk(router.estimator.margin.rate),
            observations=_counts(metrics.observations, "result"),
            misroutes=_counts(metrics.misroutes, "kind"),
            overflow_retries=_counts(metrics.overflows, "").total(),
            budgets=report_budgets(now.budgets[busiest]),
            advice=advice[busiest],
            last_decisions=self._recent.last_decisions(),
            router=self._timeline.router(),
            bodies=self._report_bodies(now),
            intervals=self._timeline.intervals(),
            models=models or UNSET,
        )

    def _report_bodies(self, now: Generation) -> BodiesReport:
        limit = now.gateway_limit.limit_bytes
        return BodiesReport(
            lost=self._metrics.bodies_lost.total(),
            requested_bytes=now.settings.max_body_bytes if limit is None else limit,
            limited=limit is not None,
        )

    def _report_models(self, now: Generation) -> list[ModelReport]:
        """Report each configured model, and ``other`` if other models are routed."""
        router, advice = now.router, advise_now(now)
        if not isinstance(router, ModelRouter):
            return []
        decisions = _counts(self._metrics.decisions, "model")
        total = decisions.total()
        routed = [*router.routers, *([router.unknown] if router.unknown else [])]
        reports = []
        for each in routed:
            stated = router.estimator.margin.rate_of(each.model)
            course = self._recent.model(each.model, stated)
            counts = now.budgets.get(each.model)
            reports.append(
                ModelReport(
                    name=each.model,
                    pools=[pool.name for pool in each.policy.pools],
                    decisions=decisions[each.model],
                    share=decisions[each.model] / total if total else None,
                    observed=course.observed,
                    mean_absolute_error=course.mean_absolute_error,
                    bias=course.bias,
                    risk=course.risk,
                    budgets=report_budgets(counts or BudgetCounts([])),
                    advice=advice.get(each.model),
                )
            )
        return reports


def _report_pool(
    pool: Pool,
    load: PoolLoad,
    decisions: Counter[str],
    endpoints: Sequence[EndpointStatus],
) -> PoolReport:
    total = decisions.total()
    return PoolReport(
        name=pool.name,
        max_model_len=pool.max_model_len,
        threshold_tokens=pool.threshold_tokens,
        decisions=decisions[pool.name],
        share=decisions[pool.name] / total if total else None,
        available=load.available,
        under_pressure=load.under_pressure,
        endpoints=[
            EndpointReport(
                name=each.name,
                healthy=each.healthy,
                waiting=each.waiting,
                running=each.running,
                kv_cache_usage=each.kv_cache_usage,
                max_model_len=each.max_model_len,
            )
            for each in endpoints
        ],
        model=pool.model or UNSET,
    )


def _counts(counter: Collector, label: str) -> Counter[str]:
    """Return the sums of a counter's values by one of its labels."""
    counts: Counter[str] = Counter()
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                counts[sample.labels.get(label, "")] += int(sample.value)
    return counts
