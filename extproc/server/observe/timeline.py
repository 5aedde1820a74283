"""The last fifteen minutes in intervals of ten seconds, for the live page.

Once per interval, the counters are read and their previous values subtracted, so a
request takes no additional time. Intervals end at multiples of ten seconds, so the
intervals of several workers can be added.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from extproc.routing.policy import Reason
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import LearningTotals, RecentDecisions
from extproc.server.observe.report import IntervalReport, RouterReport

INTERVAL_S: Final = 10.0
INTERVALS: Final = 90
_DECISION_PHASES = ("request_headers", "request_body")


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The counters at one point in time."""

    time_s: float
    pools: Counter[str]
    reasons: Counter[str]
    learning: LearningTotals
    seconds: Sequence[int]
    """Number of answered messages in each bucket of ``extproc_message_seconds``."""


class Timeline:
    """Samples the counters over the last fifteen minutes.

    Args:
        metrics: counters of decisions and answer times.
        recent: totals of learning.
        clock: seconds since the epoch.
    """

    def __init__(
        self, metrics: Metrics, recent: RecentDecisions, clock: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._recent = recent
        self._clock = clock
        self._snapshots: deque[_Snapshot] = deque(maxlen=INTERVALS + 1)
        self.sample()

    async def run(self) -> None:
        """Read the counters at the end of each interval until cancelled.

        By the clock, a timer can end shortly before its interval.
        """
        sampled = self._clock() // INTERVAL_S
        while True:
            await asyncio.sleep(INTERVAL_S - self._clock() % INTERVAL_S)
            if (interval := self._clock() // INTERVAL_S) != sampled:
                self.sample()
                sampled = interval

    def sample(self) -> None:
        """Read the counters now."""
        self._snapshots.append(self._snapshot())

    def intervals(self) -> list[IntervalReport]:
        """Report the complete intervals, oldest first."""
        return list(self._intervals())

    def router(self) -> RouterReport:
        """Report the server's own load, in the last fifteen minutes and in total."""
        metrics = self._metrics
        times = _difference(self._snapshots[0].seconds, self._snapshot().seconds)
        bounds = metrics.message_seconds.bounds
        return RouterReport(
            streams=metrics.streams_inflight,
            faults=metrics.faults.total(),
            protocol_errors=metrics.protocol_errors.total(),
            p50_s=quantile(bounds, times, 0.5),
            p99_s=quantile(bounds, times, 0.99),
        )

    def _intervals(self) -> Iterator[IntervalReport]:
        bounds = self._metrics.message_seconds.bounds
        for before, after in pairwise(self._snapshots):
            reasons = after.reasons - before.reasons
            times = _difference(before.seconds, after.seconds)
            yield IntervalReport(
                time_s=after.time_s // INTERVAL_S * INTERVAL_S,
                pools=dict(after.pools - before.pools),
                spilled=reasons[Reason.SPILLED],
                failed_open=sum(n for r, n in reasons.items() if Reason(r).failed_open),
                observed=after.learning.observed - before.learning.observed,
                absolute_error=round(
                    after.learning.absolute_error - before.learning.absolute_error, 4
                ),
                exceeded=after.learning.exceeded - before.learning.exceeded,
                p50_s=quantile(bounds, times, 0.5),
                p99_s=quantile(bounds, times, 0.99),
            )

    def _snapshot(self) -> _Snapshot:
        decisions = self._metrics.decisions
        return _Snapshot(
            self._clock(),
            decisions.by("pool"),
            decisions.by("reason"),
            self._recent.totals,
            self._metrics.message_seconds.counts_of(*_DECISION_PHASES),
        )


def quantile(
    bounds: Sequence[float], counts: Sequence[int], share: float
) -> float | None:
    """Return a quantile, interpolated within its bucket as Prometheus does.

    Args:
        bounds: upper bounds of all buckets except the last.
        counts: number of values in each bucket, not cumulative.
        share: the quantile, 0 to 1.

    Returns:
        The quantile, or None if there are no values. If the quantile is above the last
        bound, the last bound is returned.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0.0
    for low, high, count in zip((0.0, *bounds), bounds, counts, strict=False):
        if below + count >= rank:
            return float(f"{low + (high - low) * (rank - below) / count:.3g}")
        below += count
    return bounds[-1]


def _difference(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip(before, after, strict=True)]
