"""The fewest instances that meet an SLO: a guess from throughput, then simulation.

A pool is sized by its own requests. Which requests those are, the strategy decides: it
is asked about a sample of the workload first, with learning, and what it sends to each
pool becomes that pool's traffic (:func:`assign`). The guess is the rate over the
throughput of one saturated instance. Then the pool is simulated at different sizes; a
pool of more than ``SUBPOOL`` instances by that many of them with their share of the
traffic, since instances are exchangeable and the balancer looks at two at a time.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from extproc.fleet.cost import Demand
from extproc.fleet.declared import Declared
from extproc.fleet.instance import Instance, Job
from extproc.fleet.results import PoolResult, Result, State
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.slo import COVERED, Slo
from extproc.fleet.steady import Run
from extproc.fleet.steptime import StepTime
from extproc.fleet.strategy import Arrival, StrategyName, StrategySpec, build_strategy
from extproc.fleet.workload import (
    Arrivals,
    Independent,
    Lengths,
    Recorded,
    Thinned,
    Tokens,
)
from extproc.routing.policy import Pool

SUBPOOL = 8
#: Sizes are tried up to so many times what throughput alone asks for.
MOST_TIMES = 4
_SATURATING_REQUESTS = 4000
#: A try that stays unclear ends after so many times the requests it is given.
_MOST_TIMES = 4
_FEW = 1000
#: Requests that a strategy is asked about to learn where they go.
_ASKED = 10_000
#: Requests of its kind that such a pool is given instead.
_OF_A_KIND = 20_000
#: vLLM's default max_num_seqs on A100-class GPUs (vllm/engine/arg_utils.py, 0.32.0).
DEFAULT_MAX_NUM_SEQS = 256


@dataclass(frozen=True, slots=True)
class Engine:
    """One instance as deployed, before any limit is set on it.

    Attributes:
        num_blocks: KV blocks, the null block included.
        gpus: GPUs of the instance.
    """

    name: str
    step_time: StepTime
    num_blocks: int
    block_size: int
    gpus: int
    usd_per_gpu_hour: float

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return (self.num_blocks - 1) * self.block_size

    def limits(
        self, max_model_len: int, max_num_seqs: int | None, max_num_batched_tokens: int
    ) -> SchedulerLimits:
        """Limits of an instance; ``max_num_seqs`` of None is sized for the worst case.

        Raises:
            ValueError: not even one request of ``max_model_len`` fits.
        """
        worst_case = self.kv_tokens // max_model_len
        if worst_case < 1:
            raise ValueError(
                f"max_model_len: {max_model_len}, expected at most {self.kv_tokens}, "
                f"the tokens that the KV cache of {self.name} holds"
            )
        seqs = worst_case if max_num_seqs is None else max_num_seqs
        return SchedulerLimits(
            max_num_seqs=seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, seqs),
            max_model_len=max_model_len,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
        )


@dataclass(frozen=True, slots=True)
class Tier:
    """A pool before it is sized."""

    name: str
    limits: SchedulerLimits
    threshold_tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reaches one pool.

    Attributes:
        share: of all requests.
        refused: share of all requests that the pool's front end turned away, because
            the prompt alone does not fit.
    """

    share: float
    lengths: Recorded
    refused: float = 0.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which requests go where, by one strategy.

    Attributes:
        rejected: share of requests that no pool holds.
        under, over: share that the strategy sent below or above the smallest pool
            whose threshold holds their true budget.
    """

    pools: tuple[Traffic, ...]
    rejected: float
    under: float
    over: float


def assign(
    lengths: Lengths,
    tiers: Sequence[Tier],
    strategy: StrategySpec,
    seed: int,
    declared: Declared = Declared.EXACT,
    n: int = 20_000,
    learning_lag: int = 2000,
    fill: bool = True,
) -> Assignment:
    """Ask the strategy about ``n`` requests; it learns ``learning_lag`` requests later.

    It has been asked about twice the lag before, so that it is no longer new.
    With ``fill``, a pool that gets few of them is given more of the kind: further draws
    over 0.7 of the threshold below it, weighted by how rare those are.
    """
    text, traffic = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)
    )
    desk = _Desk(tiers, strategy, text, declared, learning_lag)
    desk.place(*lengths.draw(traffic, 2 * learning_lag))
    desk.reset()
    prompts, outputs = lengths.draw(traffic, n)
    placed = desk.place(prompts, outputs)
    shares = [float((placed == k).mean()) for k in range(len(tiers))]
    refused = [count / n for count in desk.refused]
    rejected = float((placed == len(tiers)).mean())
    under, over = desk.under / n, desk.over / n
    samples = [(prompts[placed == k], outputs[placed == k]) for k in range(len(tiers))]
    for k in range(1, len(tiers)):
        if not fill or len(samples[k][0]) >= _FEW:
            continue
        prompts, outputs = lengths.draw(traffic, 1_000_000)
        near = prompts + outputs > 0.7 * tiers[k - 1].threshold_tokens
        weight = float(near.mean())
        prompts, outputs = prompts[near][:_OF_A_KIND], outputs[near][:_OF_A_KIND]
        if not len(prompts):
            continue
        placed = desk.place(prompts, outputs)
        shares[k] = weight * float((placed == k).mean())
        samples[k] = (prompts[placed == k], outputs[placed == k])
    # Some went up from below that; the pools share what is not rejected.
    scale = (1 - rejected) / sum(shares) if sum(shares) else 0.0
    shares = [scale * share for share in shares]
    return Assignment(
        tuple(
            Traffic(share, Recorded(*sample), refused_share)
            for share, sample, refused_share in zip(
                shares, samples, refused, strict=True
            )
        ),
        rejected,
        under,
        over,
    )


class _Desk:
    """Places requests by a strategy, as :mod:`extproc.fleet.simulation` would."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        strategy: StrategySpec,
        rng: np.random.Generator,
        declared: Declared,
        learning_lag: int,
    ) -> None:
        pools = [
            Pool(tier.name, tier.limits.max_model_len, tier.threshold_tokens)
            for tier in tiers
        ]
        self._windows = [tier.limits.max_model_len for tier in tiers]
        self._strategy = build_strategy(strategy, pools, rng)
        self._declared = declared
        self._lag = learning_lag
        self._thresholds = [tier.threshold_tokens for tier in tiers]
        self._pending: deque[tuple[object, int, int]] = deque()
        self.reset()

    def reset(self) -> None:
        """Forget the counts, not what was learned."""
        self.refused = [0] * len(self._windows)
        self.under = self.over = 0

    def place(self, prompts: Tokens, outputs: Tokens) -> Tokens:
        """Position of the pool that takes each request; one past the last for none."""
        placed = np.empty(len(prompts), np.int64)
        for index, (prompt, output) in enumerate(
            zip(prompts.tolist(), outputs.tolist(), strict=True)
        ):
            declared = self._declared.limit(output)
            position, kept = self._strategy.choose(
                Arrival(prompt, output, declared), {}
            )
            right = self._right(prompt + output)
            self.under += position < right
            self.over += position > right
            while position < len(self._windows) and prompt >= self._windows[position]:
                self.refused[position] += 1
                position += 1
            placed[index] = position
            self._pending.append((kept, prompt, output))
            if len(self._pending) > self._lag:
                self._strategy.learn(*self._pending.popleft())
        return placed

    def _right(self, tokens: int) -> int:
        last = len(self._thresholds) - 1
        for position, threshold in enumerate(self._thresholds):
            if tokens <= threshold:
                return position
        return last


def saturated_rate(
    limits: SchedulerLimits,
    step_time: StepTime,
    lengths: Recorded,
    seed: int,
    n: int = _SATURATING_REQUESTS,
) -> float:
    """Requests a second of one instance that never runs out of them.

    Measured between the first and the last fifth to finish, when it is full.
    """
    rng = np.random.default_rng(seed)
    instance = Instance(limits, step_time)
    prompts, outputs = lengths.draw(rng, n)
    outputs = np.minimum(outputs, limits.max_model_len - prompts)
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        instance.add(Job(0.0, prompt, output))
    instance.advance(math.inf)
    ends = sorted(job.finish_s for job in instance.finished)
    first, last = n // 5, n - n // 5
    if ends[last] <= ends[first]:
        return n / ends[-1]
    return (last - first) / (ends[last] - ends[first])


def saturated_rates(
    lengths: Lengths,
    tiers: Sequence[Tier],
    step_time: StepTime,
    strategy: StrategySpec,
    seed: int,
    declared: Declared,
) -> list[float]:
    """Requests a second of a saturated instance of each pool; NaN without traffic."""
    asked = assign(lengths, tiers, strategy, seed, declared, _ASKED, _ASKED // 10)
    fitting = [
        _that_fit(pool.lengths, tier.limits.max_model_len)
        for tier, pool in zip(tiers, asked.pools, strict=True)
    ]
    return [
        saturated_rate(tier.limits, step_time, lengths, seed)
        if len(lengths.prompts)
        else math.nan
        for tier, lengths in zip(tiers, fitting, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class PoolSize:
    """A sized pool.

    Attributes:
        instances: the fewest found to meet the SLO; if ``MOST_TIMES`` the guess does
            not, those that keep utilization under ``1 - headroom``.
        guess: from the saturated rate and the headroom alone, rounded up.
        instance_rate: requests a second of a saturated instance on this traffic.
        met: whether the SLO holds.
        result: of the pool alone, of that size or of the largest that was tried; None
            for a pool without traffic.
    """

    instances: int
    guess: int
    instance_rate: float
    met: bool
    result: Result | None


@dataclass(slots=True)
class _InOrder:
    """A sample as it was drawn, over and over.

    Two policies that send nearly the same requests to a pool then see nearly the same
    traffic, request by request, and their sizes differ by what the policies do.
    """

    sample: Recorded
    _next: int = 0

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Tokens, Tokens]:
        """The next ``n`` rows; nothing is drawn."""
        rows = np.arange(self._next, self._next + n) % len(self.sample.prompts)
        self._next += n
        return self.sample.prompts[rows], self.sample.outputs[rows]


@dataclass(frozen=True, slots=True)
class SizingTask:
    """Everything needed to size one pool, in another process if need be.

    Attributes:
        rate: requests a second that reach the pool.
        arrivals: of the whole fleet; ``share`` of them reach the pool.
        requests: simulated for each size that is tried, if they are of 2,000 tokens;
            of longer ones, fewer, down to a quarter.
    """

    tier: Tier
    step_time: StepTime
    traffic: Traffic
    arrivals: Arrivals
    rate: float
    slo: Slo
    seed: int
    requests: int = 12_000
    headroom: float = 0.0


def size_pool(task: SizingTask) -> PoolSize:
    """Find the fewest instances, by widening steps and then by bisection."""
    lengths = _that_fit(task.traffic.lengths, task.tier.limits.max_model_len)
    if not len(lengths.prompts):
        return PoolSize(0, 0, math.nan, True, None)
    task = replace(task, traffic=replace(task.traffic, lengths=lengths))
    rate = saturated_rate(task.tier.limits, task.step_time, lengths, task.seed)
    guess = max(1, Demand(task.rate, rate).instances(1 - task.headroom))
    tried: dict[int, Result] = {}

    def meets(instances: int) -> bool:
        if instances not in tried:
            tried[instances] = _try(task, instances)
        return is_kept(tried[instances], 0, task.slo)

    instances = fewest(meets, guess, guess, MOST_TIMES * guess + 16)
    met = meets(instances)
    result = tried[instances]
    if not met:
        # More instances might, but nobody would pay for them: by throughput alone.
        instances = guess
    return PoolSize(instances, guess, rate, met, result)


def is_kept(result: Result, index: int, slo: Slo) -> bool:
    """Whether a pool keeps its promises, and will for as long as it runs."""
    return result.state is not State.OVERLOADED and result.pools[index].meets(slo)


@dataclass(frozen=True, slots=True)
class Clear:
    """Whether the only pool of a result is clearly within or beyond its promises."""

    slo: Slo

    def __call__(self, result: Result) -> bool:
        """Compare each interval with its limit; one that is beyond is enough."""
        ttft = result.interval(lambda whole: _late_share(whole.pools[0]))
        tpot = result.p99(lambda pool: pool.tpot, 0)
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
    """The larger of the late shares of long and of other requests, as judged."""
    shares = [
        late / count
        for count, late in (
            (pool.requests - pool.long, pool.late),
            (pool.long, pool.late_long),
        )
        if count and count >= 0.1 * pool.requests
    ]
    return max(shares, default=0.0)


def _that_fit(lengths: Recorded, max_model_len: int) -> Recorded:
    """What vLLM takes, with outputs cut at the window."""
    fits = lengths.prompts < max_model_len
    prompts = lengths.prompts[fits]
    return Recorded(prompts, np.minimum(lengths.outputs[fits], max_model_len - prompts))


def fewest(meets: Callable[[int], bool], start: int, least: int, most: int) -> int:
    """Smallest number in [least, most] that meets, assuming more never hurts.

    ``most`` if none does. Ends within 1 % of the smallest for large numbers: the noise
    of a simulated P99 is no finer.
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
    """Simulate a pool of a size, or a part of it, until its promises are clear."""
    lengths = task.traffic.lengths
    tokens = float((lengths.prompts + lengths.outputs).mean())
    requests = int(task.requests * max(0.25, min(1.0, 2000 / tokens)))
    run = Run(
        requests,
        task.seed,
        most_requests=_MOST_TIMES * requests,
        enough=Clear(task.slo),
        tick_s=10.0,
        taught=0,
    )
    return simulate_alone(task, instances, min(instances, SUBPOOL), run)


def simulate_alone(
    task: SizingTask, instances: int, simulated: int, run: Run
) -> Result:
    """Simulate a pool without its router: so many of its instances and their share."""
    limits = task.tier.limits
    spec = PoolSpec(
        task.tier.name,
        simulated,
        limits,
        task.step_time,
        limits.max_model_len,
        slo=task.slo,
    )
    share = task.traffic.share * simulated / instances
    arrivals = Thinned(task.arrivals, share) if share < 1 else task.arrivals
    return simulate(
        [spec],
        Independent(_InOrder(task.traffic.lengths), arrivals),
        StrategySpec(StrategyName.ORACLE, {"prose": 1.0}),
        run,
    )
