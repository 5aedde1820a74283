"""Minimum number of instances that meets an SLO, from throughput and simulations.

A pool is sized by its own requests, which :mod:`extproc.fleet.assignment` determines.
The first estimate is the rate divided by the throughput of one saturated instance after
deducting the headroom. Then the pool is simulated at different sizes. A pool of more
than ``SUBPOOL`` instances is represented by ``SUBPOOL`` instances with their share of
the traffic, since instances are interchangeable and the balancer compares two at a
time. For a replayed file, the whole pool is simulated instead, since thinning the file
would also thin its bursts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from extproc.fleet.assignment import PoolTraffic, Tier
from extproc.fleet.balancing import Balancing
from extproc.fleet.cost import Demand
from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.replay import Replay
from extproc.fleet.results import PoolResult, Result, RunState
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.slo import COVERED, Slo
from extproc.fleet.steady import RunSettings
from extproc.fleet.steptime import StepTime
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import (
    Arrivals,
    Independent,
    Recorded,
    RequestStream,
    Thinned,
    Tokens,
    thinned,
)

SUBPOOL = 8
#: Maximum size to try, as a multiple of the size that throughput alone requires.
MOST_TIMES = 4
_SATURATING_REQUESTS = 4000
#: A try ends after this multiple of its number of requests, even if its result is
#: unclear.
_MOST_TIMES = 4
#: Number of rounds to measure in a try when a file is replayed.
_ROUNDS = 2
#: When a file is replayed, a run stops after this multiple of the number of rounds to
#: measure.
_MOST_ROUNDS = 4
#: vLLM's default max_num_seqs on A100-class GPUs (vllm/engine/arg_utils.py, 0.32.0).
DEFAULT_MAX_NUM_SEQS = 256


@dataclass(frozen=True, slots=True)
class Engine:
    """One instance as deployed, without its pool's limits."""

    name: str
    step_time: StepTime
    num_blocks: int
    """Number of KV blocks, including the null block."""
    block_size: int
    gpus: int
    """Number of GPUs of the instance."""
    usd_per_gpu_hour: float
    enable_prefix_caching: bool = True
    async_scheduling: bool = True

    @property
    def kv_tokens(self) -> int:
        """Capacity of the KV cache in tokens."""
        return (self.num_blocks - 1) * self.block_size

    def limits(
        self, max_model_len: int, max_num_seqs: int | None, max_num_batched_tokens: int
    ) -> SchedulerLimits:
        """Return an instance's limits, for the worst case if ``max_num_seqs`` is None.

        Raises:
            ValueError: not even one request of ``max_model_len`` fits.
        """
        worst_case = self.kv_tokens // max_model_len
        if worst_case < 1:
            raise ValueError(
                f"max_model_len: {max_model_len}; expected at most {self.kv_tokens}, "
                f"the tokens in the KV cache of {self.name}"
            )
        seqs = worst_case if max_num_seqs is None else max_num_seqs
        return SchedulerLimits(
            max_num_seqs=seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, seqs),
            max_model_len=max_model_len,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            async_scheduling=self.async_scheduling,
        )


def saturated_rate(
    limits: SchedulerLimits,
    step_time: StepTime,
    lengths: Recorded,
    seed: int,
    n: int = _SATURATING_REQUESTS,
    cached_share: float = 0.0,
) -> float:
    """Return the request rate of one instance whose queue is never empty.

    The rate, in requests a second, is measured while the instance is full, so the first
    and the last fifth of the requests to finish are excluded. It is NaN if there are no
    lengths.

    Args:
        cached_share: share of each prompt found in the prefix cache. This share of the
            tokens is removed, so the time for reading their keys and values is not
            included.
    """
    if not len(lengths.prompts):
        return math.nan
    rng = np.random.default_rng(seed)
    instance = Instance(limits, step_time)
    prompts, outputs = lengths.draw(rng, n)
    outputs = np.minimum(outputs, limits.max_model_len - prompts)
    prompts = np.maximum(1, prompts * (1 - cached_share)).astype(int)
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        instance.add(Job(0.0, prompt, output))
    instance.advance(math.inf)
    ends = sorted(job.finish_s for job in instance.finished)
    first, last = n // 5, n - n // 5
    if ends[last] <= ends[first]:
        return n / ends[-1]
    return (last - first) / (ends[last] - ends[first])


@dataclass(frozen=True, slots=True)
class PoolSize:
    """The size of a pool."""

    instances: int
    """The minimum number of instances found to meet the SLO. If even the estimate times
    ``MOST_TIMES`` does not meet it, the number that keeps utilization under ``1 -
    headroom``."""
    guess: int
    """Estimated number from the saturated rate and the headroom alone, rounded up."""
    instance_rate: float
    """Requests of this traffic that a saturated instance serves in a second."""
    met: bool
    """Whether the SLO is met."""
    result: Result | None
    """Result of the pool alone, at the size found or the largest size tried; None
    without traffic."""


@dataclass(slots=True)
class _InOrder:
    """A sample in its drawn order, repeated endlessly.

    Two policies that send almost the same requests to a pool then get almost the same
    traffic, so that differences in size are caused by the policies.
    """

    sample: Recorded
    _next: int = 0

    def draw(
        self, rng: np.random.Generator, n: int, *, evenly: bool = True
    ) -> tuple[Tokens, Tokens]:
        """Return the next ``n`` rows of the sample, without random draws."""
        rows = np.arange(self._next, self._next + n) % len(self.sample.prompts)
        self._next += n
        return self.sample.prompts[rows], self.sample.outputs[rows]


@dataclass(frozen=True, slots=True)
class SizingTask:
    """The inputs for sizing one pool, possibly in another process."""

    tier: Tier
    step_time: StepTime
    traffic: PoolTraffic
    arrivals: Arrivals | Replay
    """Arrivals of the whole fleet, of which the share ``traffic.share`` reaches the
    pool; for a replayed file, the pool's own requests."""
    rate: float
    """Arrival rate of the pool in requests a second."""
    slo: Slo
    seed: int
    requests: int = 12_000
    """Number of requests to simulate for each size tried, if requests have 2,000 tokens
    on average. For longer requests the number is smaller, down to a quarter."""
    headroom: float = 0.0
    balancing: Balancing = Balancing.LEAST_REQUEST


def size_pool(task: SizingTask) -> PoolSize:
    """Find the minimum number of instances, by widening steps and then by bisection."""
    lengths = fitting(task.traffic.lengths, task.tier.limits.max_model_len)
    if not len(lengths.prompts):
        return PoolSize(0, 0, math.nan, True, None)
    task = replace(task, traffic=replace(task.traffic, lengths=lengths))
    rate = saturated_rate(task.tier.limits, task.step_time, lengths, task.seed)
    guess = max(1, Demand(task.rate, rate).instances(1 - task.headroom))
    tried: dict[int, Result] = {}
    if isinstance(task.arrivals, Replay) and task.arrivals.prefixes is not None:
        # The saturated rate depends slightly on the number of instances.
        tried[guess] = _try(task, guess)
        found = tried[guess].pools[0].cached_share
        limits = task.tier.limits
        rate = saturated_rate(
            limits, task.step_time, lengths, task.seed, cached_share=found
        )
        guess = max(1, Demand(task.rate, rate).instances(1 - task.headroom))

    def meets(instances: int) -> bool:
        if instances not in tried:
            tried[instances] = _try(task, instances)
        return is_kept(tried[instances], 0, task.slo)

    instances = fewest(meets, guess, guess, MOST_TIMES * guess + 16)
    met = meets(instances)
    result = tried[instances]
    if not met:
        # A larger number of instances might meet the SLO but would not be economical,
        # so use the estimate from throughput.
        instances = guess
    return PoolSize(instances, guess, rate, met, result)


def is_kept(result: Result, index: int, slo: Slo) -> bool:
    """Return whether a pool meets its SLO in a steady state."""
    return result.state is not RunState.OVERLOADED and result.pools[index].meets(slo)


@dataclass(frozen=True, slots=True)
class Clear:
    """A test of whether the only pool of a result clearly meets or misses its SLO."""

    slo: Slo

    def __call__(self, result: Result) -> bool:
        """Compare each interval with its limit; a single clear miss is decisive."""
        ttft = result.interval(lambda whole: _late_share(whole.pools[0]))
        tpot = result.pool_interval(0, lambda pool: pool.tpot.quantile(COVERED))
        margins = [
            (limit - interval.value, interval.half_width or 0.0)
            for interval, limit in (
                (ttft, 1 - COVERED),
                (tpot, self.slo.p99_tpot_s),
            )
            if math.isfinite(interval.value)
        ]
        if any(margin < -half for margin, half in margins):
            return True
        return all(margin > half for margin, half in margins)


def _late_share(pool: PoolResult) -> float:
    """Return the larger late share, of long or of other requests, if judged."""
    return max(pool.late_shares, default=0.0)


def fitting(lengths: Recorded, max_model_len: int) -> Recorded:
    """Return the requests that vLLM accepts, with outputs truncated at the window."""
    fits = lengths.prompts < max_model_len
    prompts = lengths.prompts[fits]
    return Recorded(prompts, np.minimum(lengths.outputs[fits], max_model_len - prompts))


def fewest(meets: Callable[[int], bool], start: int, least: int, most: int) -> int:
    """Return the smallest number in [least, most] that ``meets`` accepts, or ``most``.

    A number is assumed to meet the SLO if a smaller number does. A large result may
    exceed the smallest number by 1 %, since a simulated P99 is no more precise.
    """
    low, high = least - 1, start
    step = max(1, start // 8)
    while not meets(high):
        low = high
        if high >= most:
            return high
        high = min(most, high + step)
        step *= 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def _try(task: SizingTask, instances: int) -> Result:
    """Simulate a pool, or a part of it, until it clearly meets or misses its SLO."""
    lengths = task.traffic.lengths
    tokens = float((lengths.prompts + lengths.outputs).mean())
    requests = int(task.requests * max(0.25, min(1.0, 2000 / tokens)))
    run = RunSettings(
        requests,
        task.seed,
        most_requests=_MOST_TIMES * requests,
        enough=Clear(task.slo),
        tick_s=10.0,
        taught=0,
    )
    if isinstance(task.arrivals, Replay):
        rounds = in_rounds(run, task.arrivals)
        return simulate_alone(task, instances, instances, rounds)
    return simulate_alone(task, instances, min(instances, SUBPOOL), run)


def in_rounds(run: RunSettings, replay: Replay, rounds: int = _ROUNDS) -> RunSettings:
    """Return settings to measure ``rounds`` whole rounds of a replayed file."""
    return replace(
        run,
        requests=1,
        period_s=replay.period_s,
        batches=rounds,
        most_requests=_MOST_ROUNDS * rounds * max(1, replay.requests),
    )


def simulate_alone(
    task: SizingTask,
    instances: int,
    simulated: int,
    run: RunSettings,
    *,
    in_order: bool = True,
) -> Result:
    """Simulate some of a pool's instances alone, with their share of requests.

    Args:
        in_order: take the pool's requests in their assigned order, again and again, and
            select their times from the fleet's, so that policies are compared with the
            same requests. If false, draw both independently, so that a long run does
            not repeat itself.
    """
    limits = task.tier.limits
    spec = PoolSpec(
        task.tier.name,
        simulated,
        limits,
        task.step_time,
        limits.max_model_len,
        slo=task.slo,
        balancing=task.balancing,
    )
    stream: RequestStream
    if isinstance(task.arrivals, Replay):
        stream = task.arrivals
    else:
        share = task.traffic.share * simulated / instances
        lengths = task.traffic.lengths
        if in_order:
            arrivals = Thinned(task.arrivals, share) if share < 1 else task.arrivals
            stream = Independent(_InOrder(lengths), arrivals)
        else:
            stream = Independent(lengths, thinned(task.arrivals, share))
    return simulate(
        [spec], stream, StrategySpec(StrategyName.ORACLE, {"prose": 1.0}), run
    )
