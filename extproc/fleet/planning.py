"""What each policy needs: sized pool by pool, then simulated whole.

Every policy, the baselines too, is sized the same way (:mod:`extproc.fleet.sizing`) and
then simulated with its router in the loop; a pool that breaks its promise there grows
until it keeps it. So the savings compare like with like.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from extproc.fleet.assignment import (
    Assignment,
    Inquiry,
    PoolTraffic,
    Tier,
    assign,
    assign_replay,
)
from extproc.fleet.question import FleetPolicy, Question
from extproc.fleet.replay import Replay
from extproc.fleet.results import FEWEST_FOR_P99, Result
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.sizing import (
    PoolSize,
    SizingTask,
    in_rounds,
    is_kept,
    simulate_alone,
    size_pool,
)
from extproc.fleet.slo import Slo, long_promise_s
from extproc.fleet.steady import RunSettings, always

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


@dataclass(frozen=True, slots=True)
class PolicyTask:
    """One policy to be sized, in another process if need be."""

    question: Question
    policy: FleetPolicy


@dataclass(slots=True)
class SizedPolicy:
    """What a policy needs."""

    policy: FleetPolicy
    assignment: Assignment
    sizes: list[PoolSize]
    """From :func:`extproc.fleet.sizing.size_pool`, before verification."""
    instances: list[int]
    """Of each pool, after it."""
    result: Result
    """Of the whole fleet, its router in the loop."""
    alone: list[Result | None]
    """Of each pool that got too few of those requests, by itself; None for the others.
    """
    kept: list[bool] = field(default_factory=list)
    """Whether each pool keeps its promises."""
    rejected: float = 0.0
    """Share of the requests that it rejects and a pool of the question's
    ``max_model_len`` would take."""

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
        pool_slo(question, tier, traffic)
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
        _measure_alone(question, _as_routed(task, result, index), count)
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


def _as_routed(task: SizingTask, result: Result, index: int) -> SizingTask:
    """The task with the share that the router gave the pool, if it was seen to."""
    pool = result.pools[index]
    if pool.requests < FEWEST_FOR_P99:
        return task
    share = pool.requests / result.finished * (1 - result.rejected_share)
    return replace(task, traffic=replace(task.traffic, share=share))


def _measure_alone(question: Question, task: SizingTask, instances: int) -> Result:
    """A pool by itself, on requests of its own kind, until its figures are precise."""
    requests = int(_SHARE_TOGETHER * question.verified_requests)
    run = RunSettings(
        requests,
        question.seed + 1,
        most_requests=_MOST_TIMES * requests,
        enough=Precise(0.0),
        tick_s=10.0,
        taught=0,
    )
    return simulate_alone(task, instances, instances, run)


def pool_slo(question: Question, tier: Tier, traffic: PoolTraffic) -> Slo:
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
    run = RunSettings(
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
    """Whether every P99 of a pool is known to 2.5 %."""

    fewest: float
    """Requests of a pool below which it does not matter here."""

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
