"""What the server is, does and has learned: /status, and all that the page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from prometheus_client.registry import Collector

import extproc
from extproc.routing.policy import IDLE, Pool, PoolLoad
from extproc.server.in_force import InForce
from extproc.server.observe.advising import Advisor
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions


class StatusReporter:
    """Reports the state of one server; a report costs nothing until it is asked for.

    Args:
        in_force: its pools, estimator and ratios are reported.
        metrics: where the counts are read.
        history: the last decisions, and how learning went.
        advisor: the budgets' distribution and what it suggests.
        ready: whether new streams are welcome.
        clock: seconds since the epoch; read once now, for the uptime.
    """

    def __init__(
        self,
        in_force: InForce,
        metrics: Metrics,
        history: RecentDecisions,
        advisor: Advisor,
        ready: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._in_force = in_force
        self._metrics = metrics
        self._history = history
        self._advisor = advisor
        self._ready = ready
        self._clock = clock
        self._started_s = clock()

    def report(self) -> dict[str, Any]:
        """Everything, as plain values; shares, ratios and errors are fractions."""
        now, metrics = self._in_force.now, self._metrics
        by_pool = _counts(metrics.decisions, "pool")
        by_category = _counts(metrics.decisions, "category")
        learning = self._history.learning()
        return {
            "version": extproc.__version__,
            "ready": self._ready(),
            "mode": str(now.config.mode),
            "uptime_s": round(self._clock() - self._started_s, 1),
            "estimator": now.router.estimator.name,
            "decisions": by_pool.total(),
            "pools": self._report_pools(by_pool),
            "reasons": _counts(metrics.decisions, "reason"),
            "categories": {
                name: {"decisions": by_category[name], **learning.get(name, {})}
                for name in sorted({*by_category, *learning})
            },
            "bytes_per_token": now.router.ratios.all(),
            "risk": {
                "stated": now.router.estimator.margin.rate,
                **self._history.achieved_risk(),
            },
            "observations": _counts(metrics.observations, "result"),
            "misroutes": _counts(metrics.misroutes, "kind"),
            "overflow_retries": _counts(metrics.overflows, "").total(),
            **self._advisor.report(),
            "last_decisions": self._history.last_decisions(),
        }

    def _report_pools(self, by_pool: Counter[str]) -> list[dict[str, Any]]:
        now = self._in_force.now
        loads = now.loads()
        total = by_pool.total()
        return [
            _report_pool(pool, loads.get(pool.name, IDLE), by_pool[pool.name], total)
            for pool in now.router.policy.pools
        ]


def _report_pool(
    pool: Pool, load: PoolLoad, decisions: int, total: int
) -> dict[str, Any]:
    return {
        "name": pool.name,
        "max_model_len": pool.max_model_len,
        "threshold_tokens": pool.threshold_tokens,
        "decisions": decisions,
        "share": decisions / total if total else None,
        "available": load.available,
        "under_pressure": load.under_pressure,
    }


def _counts(counter: Collector, label: str) -> Counter[str]:
    """A counter's values summed up by one of its labels."""
    counts: Counter[str] = Counter()
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                counts[sample.labels.get(label, "")] += int(sample.value)
    return counts
