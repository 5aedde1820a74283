"""The results of a simulated fleet as counts, for each pool and in total.

A run is divided into consecutive batches. Every batch counts the requests that finished
in it and integrates over its own length. The sum of the measured batches is the result,
and the spread of the batches determines the interval of every figure (batch means; Law,
"Simulation Modeling and Analysis", section 9.5.3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self

from extproc.fleet.histogram import Histogram
from extproc.fleet.intervals import Interval, batch_half_width, share_half_width
from extproc.fleet.job import Job
from extproc.fleet.slo import COVERED, Slo

#: Minimum number of requests for a 99th percentile, so that ten requests are above it.
FEWEST_FOR_P99 = 1000
#: Minimum number of requests of a kind for judging the share of them that are late. If
#: there are 500, five may be late.
FEWEST_JUDGED = 500


@dataclass(slots=True)
class PoolResult:
    """The results of one pool, over the requests that finished in it.

    ``ttft``, ``tpot``, ``wait`` and ``e2e`` are in seconds. TPOT excludes the first
    token, and requests with only one token. ``wait`` ends when the first token is
    scheduled.
    Names with ``_s`` are integrals over time: ``busy_s``, ``running_s`` (running
    requests) and ``blocks_s`` (used KV blocks) are summed over instances, and
    ``in_system_s`` covers all requests in the pool, running or waiting.
    """

    name: str
    instances: int
    usable_blocks: int = 1
    arrivals: int = 0
    requests: int = 0
    preempted: int = 0
    preemptions: int = 0
    truncated: int = 0
    long: int = 0
    """Number of requests that are long according to the SLO."""
    late: int = 0
    late_long: int = 0
    """Number of long requests whose TTFT missed the SLO; ``late`` counts the other
    requests."""
    overflows: int = 0
    """Number of requests that this pool refused and a larger pool accepted."""
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    duration_s: float = 0.0
    in_system_s: float = 0.0
    busy_s: float = 0.0
    running_s: float = 0.0
    blocks_s: float = 0.0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Number of prompt tokens found in the prefix cache."""
    peak_kv_cache_usage: float = 0.0

    def count(self, jobs: Sequence[Job], slo: Slo) -> None:
        """Add requests that have finished in this pool."""
        self.requests += len(jobs)
        for job in jobs:
            ttft_s = job.first_token_s - job.arrival_s
            if job.prompt_tokens + job.output_tokens > slo.long_tokens:
                self.long += 1
                self.late_long += ttft_s > slo.long_ttft_s
            else:
                self.late += ttft_s > slo.p99_ttft_s
            self.prompt_tokens += job.prompt_tokens
            self.cached_tokens += job.cached_tokens
            if job.num_preemptions:
                self.preempted += 1
                self.preemptions += job.num_preemptions
        self.ttft.add(job.first_token_s - job.arrival_s for job in jobs)
        self.wait.add(job.first_step_s - job.arrival_s for job in jobs)
        self.e2e.add(job.finish_s - job.arrival_s for job in jobs)
        self.tpot.add(
            (job.finish_s - job.first_token_s) / (job.output_tokens - 1)
            for job in jobs
            if job.output_tokens > 1
        )

    def merge(self, other: "PoolResult") -> None:
        """Add the same pool's results from another period."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif each.name == "peak_kv_cache_usage":
                self.peak_kv_cache_usage = max(mine, theirs)
            elif each.name not in ("name", "instances", "usable_blocks"):
                setattr(self, each.name, mine + theirs)

    @property
    def residence_s(self) -> float:
        """Return the mean time in the pool, from finished requests or by Little's law.

        The result is the larger of these two values, because few requests, mostly short
        ones, finish while a pool fills. It is NaN if there were no arrivals.
        """
        if not self.arrivals:
            return math.nan
        by_law = self.in_system_s / self.arrivals
        return max(by_law, self.e2e.mean) if self.requests else by_law

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens found in the prefix cache."""
        if not self.prompt_tokens:
            return math.nan
        return self.cached_tokens / self.prompt_tokens

    @property
    def rate(self) -> float:
        """Number of finished requests a second."""
        return self.requests / self.duration_s if self.duration_s else math.nan

    @property
    def late_shares(self) -> list[float]:
        """Return late shares of other and of long requests; omit a kind if too few."""
        fewest = min(0.1 * self.requests, FEWEST_JUDGED)
        return [
            late / count
            for count, late in (
                (self.requests - self.long, self.late),
                (self.long, self.late_long),
            )
            if count and count >= fewest
        ]

    @property
    def mean_in_system(self) -> float:
        """Mean number of requests in the pool, running and waiting, over time."""
        return self.in_system_s / self.duration_s if self.duration_s else math.nan

    @property
    def busy_share(self) -> float:
        """Mean share of time in which an instance computes."""
        return self._a_instance(self.busy_s)

    @property
    def mean_running(self) -> float:
        """Mean number of running requests per instance."""
        return self._a_instance(self.running_s)

    @property
    def mean_kv_cache_usage(self) -> float:
        """Mean share of KV blocks in use."""
        return self._a_instance(self.blocks_s) / self.usable_blocks

    @property
    def tokens_per_s(self) -> float:
        """Number of tokens that all instances compute in a second."""
        return self._a_instance(self.computed_tokens) * self.instances

    @property
    def preemption_rate(self) -> float:
        """Number of preemptions per request."""
        return self.preemptions / self.requests if self.requests else 0.0

    def _a_instance(self, integral: float) -> float:
        time_s = self.duration_s * self.instances
        return integral / time_s if time_s else math.nan

    def meets(self, slo: Slo) -> bool:
        """Return whether TTFT, TPOT and preemptions meet the SLO.

        Long and other requests have separate limits. A kind with less than a tenth of
        the pool's requests is judged only if it has enough requests.
        """
        return (
            not any(share > 1 - COVERED for share in self.late_shares)
            and not self.tpot.quantile(COVERED) > slo.p99_tpot_s
            and self.preemption_rate <= slo.preemption_rate
        )


class RunState(StrEnum):
    """Whether the figures are from a fleet in its steady state."""

    STEADY = "steady"
    """The measurement started after the fleet had filled, and its two halves agree."""
    OVERLOADED = "overloaded"
    """Requests pile up, so a longer run has worse figures."""
    UNSETTLED = "unsettled"
    """The run ended before its two halves agreed."""
    TRANSIENT = "transient"
    """The measurement started with the first request, as configured."""


@dataclass(slots=True)
class Result:
    """The results of a fleet over a period of time.

    Attributes:
        start_s, duration_s: start and length of the period, in simulated time.
        measured: number of requests that arrived in the period.
        rejected: number of the measured requests that exceed every pool.
        sent_short: number of the measured requests sent to a pool that could not fit
            them or whose threshold they exceed; ``sent_long``: number of requests sent
            to a larger pool than necessary. Spilled requests are not counted.
        batches: the consecutive periods that compose the result; empty for a batch
            itself.
        arrived, completed, in_flight: numbers of requests in the whole run, measured or
            not; rejected requests count as completed.
        fill_s: simulated seconds before the period.
    """

    pools: list[PoolResult]
    start_s: float = 0.0
    duration_s: float = 0.0
    measured: int = 0
    rejected: int = 0
    sent_short: int = 0
    sent_long: int = 0
    seed: int = 0
    batches: "tuple[Result, ...]" = ()
    state: RunState = RunState.TRANSIENT
    arrived: int = 0
    completed: int = 0
    in_flight: int = 0
    fill_s: float = 0.0

    @classmethod
    def of(cls, stretches: "Sequence[Result]") -> Self:
        """Return the sum of consecutive periods, at least one."""
        pools = [
            PoolResult(pool.name, pool.instances, pool.usable_blocks)
            for pool in stretches[0].pools
        ]
        total = cls(pools, stretches[0].start_s)
        for stretch in stretches:
            for mine, theirs in zip(pools, stretch.pools, strict=True):
                mine.merge(theirs)
            total.duration_s += stretch.duration_s
            total.measured += stretch.measured
            total.rejected += stretch.rejected
            total.sent_short += stretch.sent_short
            total.sent_long += stretch.sent_long
        return total

    @property
    def ttft(self) -> Histogram:
        """Time to the first token in seconds, over all pools."""
        return self.merged(lambda pool: pool.ttft)

    @property
    def tpot(self) -> Histogram:
        """Time per further token in seconds, over all pools."""
        return self.merged(lambda pool: pool.tpot)

    @property
    def wait(self) -> Histogram:
        """Time in seconds until the first token is scheduled, over all pools."""
        return self.merged(lambda pool: pool.wait)

    def merged(self, of: Callable[[PoolResult], Histogram]) -> Histogram:
        """Return a histogram over all pools."""
        merged = Histogram()
        for pool in self.pools:
            merged.merge(of(pool))
        return merged

    @property
    def finished(self) -> int:
        """Number of requests that finished in the period."""
        return sum(pool.requests for pool in self.pools)

    @property
    def late_share(self) -> float:
        """Share of the requests whose TTFT missed the SLO."""
        late = sum(pool.late + pool.late_long for pool in self.pools)
        return late / self.finished if self.finished else 0.0

    @property
    def rejected_share(self) -> float:
        """Share of the requests that exceed every pool."""
        return self._share(self.rejected)

    @property
    def misrouted_short(self) -> float:
        """Share of the requests sent to a smaller pool than the right one."""
        return self._share(self.sent_short)

    @property
    def misrouted_long(self) -> float:
        """Share of the requests sent to a larger pool than the right one."""
        return self._share(self.sent_long)

    @property
    def overflow_share(self) -> float:
        """Share of the requests that a pool refused and a larger pool accepted."""
        return self._share(self.overflows)

    @property
    def truncated_share(self) -> float:
        """Share of the requests whose output a pool's window truncated."""
        return self._share(self.truncated)

    def _share(self, count: int) -> float:
        return count / self.measured if self.measured else 0.0

    @property
    def overflows(self) -> int:
        """Number of requests that a pool refused and a larger pool accepted."""
        return sum(pool.overflows for pool in self.pools)

    @property
    def truncated(self) -> int:
        """Number of requests whose output a pool's window truncated."""
        return sum(pool.truncated for pool in self.pools)

    @property
    def preemptions(self) -> int:
        """Number of preemptions of measured requests."""
        return sum(pool.preemptions for pool in self.pools)

    def interval(self, of: "Callable[[Result], float]") -> Interval:
        """Return a figure of the whole result with its confidence interval.

        Args:
            of: computes the figure from the whole result or from a batch.
        """
        return Interval(
            of(self), batch_half_width([of(batch) for batch in self.batches])
        )

    def pool_interval(self, index: int, of: Callable[[PoolResult], float]) -> Interval:
        """Return a figure of one pool with its confidence interval."""
        return self.interval(lambda result: of(result.pools[index]))

    def p99(
        self, of: Callable[[PoolResult], Histogram], index: int | None = None
    ) -> Interval:
        """Return the P99 of one pool or all pools, or NaN if requests are too few."""

        def histogram(result: Result) -> Histogram:
            if index is None:
                return result.merged(of)
            return of(result.pools[index])

        whole = histogram(self)
        if whole.count < FEWEST_FOR_P99:
            return Interval(math.nan)
        found = self.interval(lambda result: histogram(result).quantile(COVERED))
        by_share = share_half_width(
            whole, [histogram(b) for b in self.batches], COVERED
        )
        if found.half_width is None or by_share is None:
            return Interval(found.value)
        return Interval(found.value, max(found.half_width, by_share))
