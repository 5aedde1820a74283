"""What a simulated fleet did, by pool and in all; counted, not kept."""

from dataclasses import dataclass, field

from extproc.fleet.histogram import Histogram
from extproc.fleet.instance import Job
from extproc.fleet.slo import COVERED, Slo


@dataclass(slots=True)
class PoolResult:
    """What one pool did with the measured requests, by where they ended.

    ``ttft``, ``tpot``, ``wait`` and ``e2e`` are in seconds; TPOT leaves out the first
    token and requests with only one. ``wait`` ends when the first token is scheduled.
    """

    name: str
    instances: int
    requests: int = 0
    preempted: int = 0
    preemptions: int = 0
    truncated: int = 0
    long: int = 0
    """Requests that the SLO calls long."""
    late: int = 0
    late_long: int = 0
    """Requests whose first token broke the SLO's promise; ``late`` are not long."""
    overflows: int = 0
    """Requests that this pool refused and a larger one took."""
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    busy_share: float = 0.0
    """Share of the time in which an instance computes, on average."""
    mean_running: float = 0.0
    """Running requests an instance, on average."""
    mean_kv_cache_usage: float = 0.0
    peak_kv_cache_usage: float = 0.0
    mean_in_system: float = 0.0
    """Requests in the pool, sampled at every tick."""
    tokens_per_s: float = 0.0

    def count(self, jobs: list[Job], slo: Slo) -> None:
        """Count measured requests that have finished here."""
        self.requests += len(jobs)
        for job in jobs:
            ttft_s = job.first_token_s - job.arrival_s
            if job.prompt_tokens + job.output_tokens > slo.long_tokens:
                self.long += 1
                self.late_long += ttft_s > slo.long_ttft_s
            else:
                self.late += ttft_s > slo.p99_ttft_s
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

    @property
    def preemption_rate(self) -> float:
        """Preemptions a request."""
        return self.preemptions / self.requests if self.requests else 0.0

    def meets(self, slo: Slo) -> bool:
        """Whether first tokens, further tokens and preemptions keep their promises.

        Long and other requests each have their promise; one of the two that is less
        than a tenth of the pool's requests is there by mistake and not judged here.
        """
        for count, late in (
            (self.requests - self.long, self.late),
            (self.long, self.late_long),
        ):
            if count >= 0.1 * self.requests and late > (1 - COVERED) * count:
                return False
        return (
            not self.tpot.quantile(COVERED) > slo.p99_tpot_s
            and self.preemption_rate <= slo.preemption_rate
        )


@dataclass(slots=True)
class Result:
    """What a fleet did.

    Attributes:
        duration_s: simulated time from the first to the last arrival.
        arrived: all arrivals; measured ones are ``requests`` and ``rejected``.
        misrouted_short: share of measured requests that a smaller pool got and could
            not hold, or should not have by its threshold; ``misrouted_long`` that a
            larger one got without need. Spilled requests do not count.
    """

    pools: list[PoolResult]
    seed: int
    arrived: int = 0
    completed: int = 0
    rejected: int = 0
    measured: int = 0
    duration_s: float = 0.0
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    misrouted_short: float = 0.0
    misrouted_long: float = 0.0

    @property
    def late_share(self) -> float:
        """Share of the requests whose first token broke its promise."""
        late = sum(pool.late + pool.late_long for pool in self.pools)
        return late / self.ttft.count if self.ttft.count else 0.0

    @property
    def overflows(self) -> int:
        """Requests that a pool refused and a larger one took."""
        return sum(pool.overflows for pool in self.pools)

    @property
    def truncated(self) -> int:
        """Requests whose output a pool's window cut off."""
        return sum(pool.truncated for pool in self.pools)

    @property
    def preemptions(self) -> int:
        """Preemptions of measured requests."""
        return sum(pool.preemptions for pool in self.pools)
