"""One question, several fleets: what each policy needs, and what a split saves.

Every policy, the baselines too, is sized the same way (:mod:`extproc.fleet.sizing`) and
then simulated whole, with its router in the loop; a pool that breaks its promise there
grows until it keeps it. So the savings compare like with like:

- ``homogeneous-worst-case``: one pool whose ``max_num_seqs`` is the number of sequences
  of ``max_model_len`` that fit, which is the papers' baseline;
- ``homogeneous-paged``: the same pool with vLLM's default ``max_num_seqs``. vLLM takes
  KV blocks as they are needed, so this is what most people run;
- ``homogeneous-short-limit``: one pool with the short pool's ``max_model_len``, which
  rejects longer prompts and cuts longer answers off;
- ``split``: pools by threshold, the shipped router, ``max_num_seqs`` as in paged;
- ``split-worst-case``: the same with worst-case ``max_num_seqs``, the papers' split;
- ``split-oracle``, ``split-prompt-length``, ``split-bytes/4``: other routers.

From worst case to paged is what not sizing for the worst case saves. From paged to
split is what the split itself saves, or costs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from extproc.fleet.assignment import (
    Assignment,
    Inquiry,
    PoolTraffic,
    Tier,
    assign,
    assign_replay,
)
from extproc.fleet.declared import Declared
from extproc.fleet.replay import Replay
from extproc.fleet.results import Result
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.sizing import (
    DEFAULT_MAX_NUM_SEQS,
    Engine,
    PoolSize,
    SizingTask,
    in_rounds,
    is_kept,
    simulate_alone,
    size_pool,
)
from extproc.fleet.slo import Slo, long_promise_s, token_budget
from extproc.fleet.steady import Run, always
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Arrivals, Independent, Stream, Workload

#: Times that a pool grows which misses its promises: by 2 %, by 4 % more, and so on.
_GROWTHS = 4
#: Relative half width of the interval of a P99 that is precise enough: two runs then
#: differ by less than 5 % as good as always.
PRECISION = 0.025
#: A pool that gets a smaller share of the requests to be measured is measured alone.
_SHARE_TOGETHER = 0.25
_MOST_TIMES = 10
#: Rounds of a replayed file that are measured.
_ROUNDS = 4
_DRAWS = 200_000


VERIFIED_REQUESTS = 40_000
#: Share of the saturated rate that stays free unless asked otherwise.
DEFAULT_HEADROOM = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be planned.

    Attributes:
        rate: requests a second, on average, of ``arrivals``.
        arrivals: instants that lengths do not depend on, or a file replayed.
        thresholds: limits of the pools below the last, increasing; each pool takes
            budgets up to its own.
        max_model_len: of the last pool, and of homogeneous ones.
        max_num_batched_tokens: of every instance.
        max_num_seqs: where it is not sized for the worst case.
        asked_requests, tried_requests, verified_requests: drawn to ask a strategy,
            measured for each size that is tried, and of the whole fleet at the end.
        headroom: share of each pool's saturated rate that stays free.
        traffic: how the arrivals were chosen, in a sentence for the operator.
        long_promise_given: whether ``slo.long_ttft_s`` is the operator's; if not, the
            last pool's is made from its own requests.
    """

    workload: Workload
    engine: Engine
    rate: float
    arrivals: Arrivals | Replay
    slo: Slo
    thresholds: tuple[int, ...]
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    declared: Declared = Declared.EXACT
    variation_factor: float = 1.0
    seed: int = 42
    asked_requests: int = 20_000
    tried_requests: int = 12_000
    verified_requests: int = VERIFIED_REQUESTS
    headroom: float = DEFAULT_HEADROOM
    traffic: str = ""
    long_promise_given: bool = False

    @property
    def stream(self) -> Stream:
        """Instants and lengths together."""
        if isinstance(self.arrivals, Replay):
            return self.arrivals
        return Independent(self.workload.lengths, self.arrivals)


def complete_slo(
    slo: Slo,
    workload: Workload,
    engine: Engine,
    thresholds: Sequence[int],
    max_model_len: int,
    max_num_batched_tokens: int | None,
    seed: int,
    long_ttft_s: float | None = None,
) -> tuple[Slo, int]:
    """Fill in what follows from the rest: the long promise and the token budget.

    Args:
        long_ttft_s: the long promise, if it is given.
    """
    budget = max_num_batched_tokens or token_budget(engine.step_time, slo)
    if long_ttft_s is not None:
        given = replace(slo, long_tokens=thresholds[-1], long_ttft_s=long_ttft_s)
        return given, budget
    prompts, outputs = workload.lengths.draw(np.random.default_rng(seed), _DRAWS)
    long = prompts + outputs > thresholds[-1]
    promise_s = long_promise_s(
        prompts[long],
        engine.limits(max_model_len, None, budget),
        engine.step_time,
        slo.p99_ttft_s,
    )
    return replace(slo, long_tokens=thresholds[-1], long_ttft_s=promise_s), budget


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """A way to run the fleet."""

    name: str
    title: str
    tiers: tuple[Tier, ...]
    strategy: StrategySpec


@dataclass(frozen=True, slots=True)
class PolicyTask:
    """One policy to be sized, in another process if need be."""

    question: Question
    policy: FleetPolicy


@dataclass(slots=True)
class SizedPolicy:
    """What a policy needs.

    Attributes:
        sizes: from :func:`extproc.fleet.sizing.size_pool`, before verification.
        instances: of each pool, after it.
        result: of the whole fleet, its router in the loop.
        alone: of each pool that got too few of those requests, by itself; None for the
            others.
        kept: whether each pool keeps its promises.
        rejected: share of the requests that it rejects and a pool of the question's
            ``max_model_len`` would take.
    """

    policy: FleetPolicy
    assignment: Assignment
    sizes: list[PoolSize]
    instances: list[int]
    result: Result
    alone: list[Result | None]
    kept: list[bool] = field(default_factory=list)
    rejected: float = 0.0

    @property
    def total(self) -> int:
        """Instances of all pools."""
        return sum(self.instances)

    @property
    def slo_met(self) -> bool:
        """Whether every pool keeps its promises."""
        return all(self.kept)

    def measured(self, index: int) -> tuple[Result, int]:
        """The result that has a pool's figures, and its position there."""
        alone = self.alone[index]
        return (self.result, index) if alone is None else (alone, 0)

    def utilization(self, index: int) -> float:
        """Requests a second over those of the saturated pool; NaN without traffic."""
        result, position = self.measured(index)
        saturated = self.sizes[index].instance_rate * self.instances[index]
        return result.pools[position].rate / saturated


POOL_NAMES = {2: ("short", "long"), 3: ("short", "medium", "long")}


def policies(question: Question) -> list[FleetPolicy]:
    """The policies compared, the papers' baseline first and ``split`` second."""
    seqs = question.max_num_seqs
    mix = question.workload.mix

    def tier(name: str, max_model_len: int, max_num_seqs: int | None) -> Tier:
        limits = question.engine.limits(
            max_model_len, max_num_seqs, question.max_num_batched_tokens
        )
        return Tier(name, limits, max_model_len)

    def tiers(max_num_seqs: int | None) -> tuple[Tier, ...]:
        ends = (*question.thresholds, question.max_model_len)
        names = POOL_NAMES.get(len(ends), tuple(f"up-to-{end}" for end in ends))
        return tuple(
            tier(name, end, max_num_seqs) for name, end in zip(names, ends, strict=True)
        )

    def strategy(name: StrategyName) -> StrategySpec:
        return StrategySpec(name, mix, question.variation_factor)

    oracle = strategy(StrategyName.ORACLE)
    longest, shortest = question.max_model_len, question.thresholds[-1]
    worst = tier("all", longest, None)
    found = [
        FleetPolicy(
            "homogeneous-worst-case",
            f"one pool, max_num_seqs {worst.limits.max_num_seqs}, as many as fit with "
            f"{longest:,} tokens each",
            (worst,),
            oracle,
        ),
        FleetPolicy(
            "split",
            f"pools by token budget, max_num_seqs {seqs}",
            tiers(seqs),
            strategy(StrategyName.ROUTER),
        ),
        FleetPolicy(
            "homogeneous-paged",
            f"one pool, max_num_seqs {seqs}",
            (tier("all", longest, seqs),),
            oracle,
        ),
        FleetPolicy(
            "homogeneous-short-limit",
            f"one pool, max_num_seqs {seqs}, max_model_len {shortest:,}",
            (tier("all", shortest, seqs),),
            oracle,
        ),
        FleetPolicy(
            "split-worst-case",
            "the split, max_num_seqs for the worst case",
            tiers(None),
            strategy(StrategyName.ROUTER),
        ),
    ]
    for name, title in (
        (StrategyName.ORACLE, "the split, routed by the true budget"),
        (StrategyName.PROMPT_LENGTH, "the split, routed by prompt tokens alone"),
        (StrategyName.BYTES_PER_4, "the split, routed by body bytes / 4"),
    ):
        found.append(FleetPolicy(f"split-{name}", title, tiers(seqs), strategy(name)))
    return found


def size_policy(task: PolicyTask) -> SizedPolicy:
    """Size every pool of a policy, then simulate the whole and grow what is short."""
    question, policy = task.question, task.policy
    inquiry = Inquiry(
        policy.tiers,
        policy.strategy,
        question.seed,
        question.declared,
        question.asked_requests,
        question.asked_requests // 10,
    )
    if isinstance(question.arrivals, Replay):
        assignment = assign_replay(question.arrivals, inquiry)
    else:
        assignment = assign(question.workload.lengths, inquiry)
    slos = [
        _pool_slo(question, tier, traffic)
        for tier, traffic in zip(policy.tiers, assignment.pools, strict=True)
    ]
    tasks = [
        SizingTask(
            tier,
            question.engine.step_time,
            traffic,
            traffic.replay or question.arrivals,
            question.rate * traffic.share,
            slo,
            question.seed,
            question.tried_requests,
            question.headroom,
        )
        for tier, traffic, slo in zip(policy.tiers, assignment.pools, slos, strict=True)
    ]
    sizes = [size_pool(task) for task in tasks]
    instances = [max(1, size.instances) for size in sizes]
    for growth in range(_GROWTHS + 1):
        sized = _verified(question, policy, assignment, tasks, sizes, instances)
        short = [k for k, size in enumerate(sizes) if size.met and not sized.kept[k]]
        if not short or growth == _GROWTHS:
            break
        instances = [
            count + (max(1, (count << growth) // 50) if index in short else 0)
            for index, count in enumerate(instances)
        ]
    return sized


def _verified(
    question: Question,
    policy: FleetPolicy,
    assignment: Assignment,
    tasks: Sequence[SizingTask],
    sizes: list[PoolSize],
    instances: list[int],
) -> SizedPolicy:
    """Simulate the fleet, and by itself each pool that is rarely asked there."""
    slos = [task.slo for task in tasks]
    result = _verify(question, policy, instances, slos)
    alone = [
        _measure_alone(question, task, count)
        if size.result is not None
        and not isinstance(question.arrivals, Replay)
        and not _gets_enough(question, result, index)
        else None
        for index, (task, size, count) in enumerate(
            zip(tasks, sizes, instances, strict=True)
        )
    ]
    sized = SizedPolicy(policy, assignment, sizes, instances, result, alone)
    sized.kept = [is_kept(*sized.measured(k), slo) for k, slo in enumerate(slos)]
    if policy.tiers[-1].limits.max_model_len < question.max_model_len:
        sized.rejected = assignment.rejected
    return sized


def _gets_enough(question: Question, result: Result, index: int) -> bool:
    """Whether a pool gets enough of the fleet's requests to be measured among them."""
    fewest = _SHARE_TOGETHER * question.verified_requests
    return result.pools[index].requests >= min(fewest, result.finished / 2)


def _measure_alone(question: Question, task: SizingTask, instances: int) -> Result:
    """A pool by itself, on requests of its own kind, until its figures are precise."""
    requests = int(_SHARE_TOGETHER * question.verified_requests)
    run = Run(
        requests,
        question.seed + 1,
        most_requests=_MOST_TIMES * requests,
        enough=Precise(0.0),
        tick_s=10.0,
        taught=0,
    )
    return simulate_alone(task, instances, instances, run)


def _pool_slo(question: Question, tier: Tier, traffic: PoolTraffic) -> Slo:
    """The promises that a pool's own requests have.

    A last pool of several also gets some that should have gone before it; they share
    it with long ones, and its promise.
    """
    if tier.limits.max_model_len < question.max_model_len or traffic.share > 0.5:
        return question.slo
    if question.long_promise_given:
        return replace(question.slo, p99_ttft_s=question.slo.long_ttft_s)
    promise_s = long_promise_s(
        traffic.lengths.prompts,
        tier.limits,
        question.engine.step_time,
        question.slo.long_ttft_s,
    )
    return replace(question.slo, p99_ttft_s=promise_s, long_ttft_s=promise_s)


def _verify(
    question: Question,
    policy: FleetPolicy,
    instances: Sequence[int],
    slos: Sequence[Slo],
) -> Result:
    """Simulate the whole fleet, its router in the loop."""
    specs = [
        PoolSpec(
            tier.name,
            count,
            tier.limits,
            question.engine.step_time,
            tier.threshold_tokens,
            slo=slo,
        )
        for tier, count, slo in zip(policy.tiers, instances, slos, strict=True)
    ]
    # Traffic of its own: pools are not verified on the draws they were sized by.
    run = Run(
        question.verified_requests,
        question.seed + 1,
        question.declared,
        most_requests=_MOST_TIMES * question.verified_requests,
        enough=Precise(_SHARE_TOGETHER * question.verified_requests),
        taught=question.verified_requests // 20,
    )
    if isinstance(question.arrivals, Replay):
        run = replace(in_rounds(run, question.arrivals, _ROUNDS), enough=always)
    return simulate(specs, question.stream, policy.strategy, run)


@dataclass(frozen=True, slots=True)
class Precise:
    """Whether every P99 of a pool is known to 2.5 %.

    Attributes:
        fewest: requests of a pool below which it does not matter here.
    """

    fewest: float

    def __call__(self, result: Result) -> bool:
        """Look at the intervals of first tokens and of further ones."""
        return all(
            interval.relative <= PRECISION
            for index, pool in enumerate(result.pools)
            if pool.requests >= self.fewest
            for interval in (
                result.p99(lambda pool: pool.ttft, index),
                result.p99(lambda pool: pool.tpot, index),
            )
            if math.isfinite(interval.value)
        )
