"""Sizes each policy pool by pool, then simulates its whole fleet.

Every policy, including the baselines, is sized the same way
(:mod:`extproc.fleet.sizing`) and then simulated with its router. A pool that misses its
SLO in this simulation grows until it meets the SLO, so savings compare fleets under
equal conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from extproc.fleet.alone import COMPARED_PRECISION, PRECISION, Alone, Precise
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
from extproc.fleet.results import Result
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.sizing import (
    PoolSize,
    SizingTask,
    in_rounds,
    is_kept,
    size_pool,
)
from extproc.fleet.slo import Slo, long_promise_s
from extproc.fleet.steady import RunSettings, always

#: Maximum number of times that a pool grows if it misses its SLO: by 2 %, then by
#: another 4 %, etc.
_GROWTHS = 4
#: A pool with less than this share of the measured requests is measured alone.
_SHARE_TOGETHER = 0.25
_MOST_TIMES = 10
#: Number of rounds to measure when a file is replayed.
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class PolicyTask:
    """One policy to size, possibly in another process."""

    question: Question
    policy: FleetPolicy


@dataclass(slots=True)
class SizedPolicy:
    """The sizes of a policy's pools, and the simulation that verifies these sizes."""

    policy: FleetPolicy
    assignment: Assignment
    sizes: list[PoolSize]
    """Sizes from :func:`extproc.fleet.sizing.size_pool`, before verification."""
    instances: list[int]
    """Number of instances of each pool after verification."""
    result: Result
    """Result of the whole fleet, simulated with its router."""
    alone: list[Result | None]
    """Result of each pool measured alone because too few of the fleet's requests reach
    it; None for other pools."""
    kept: list[bool] = field(default_factory=list)
    """Whether each pool meets its SLO."""
    rejected: float = 0.0
    """Share of the requests that the policy rejects although a pool with the
    question's ``max_model_len`` would accept them."""

    @property
    def total(self) -> int:
        """Number of instances of all pools."""
        return sum(self.instances)

    @property
    def slo_met(self) -> bool:
        """Whether every pool meets its SLO."""
        return all(self.kept)

    def measured(self, index: int) -> tuple[Result, int]:
        """Return the result that has a pool's figures, and the pool's index in it."""
        alone = self.alone[index]
        return (self.result, index) if alone is None else (alone, 0)


def size_policy(task: PolicyTask) -> SizedPolicy:
    """Size every pool of a policy, simulate the fleet, and grow pools if needed."""
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
            question.hardware(tier.name).engine.step_time,
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
    """Simulate the fleet, and simulate pools with few requests alone."""
    slos = [task.slo for task in tasks]
    result = _verify(question, policy, instances, slos)
    fewest = int(_SHARE_TOGETHER * question.verified_requests)
    precision = PRECISION if policy.is_planned else COMPARED_PRECISION
    apart = Alone(fewest, _MOST_TIMES * fewest, question.seed + 1, precision)
    alone = [
        apart.measure(task, result, index, count)
        if apart.is_for(task, result, index)
        else None
        for index, (task, count) in enumerate(zip(tasks, instances, strict=True))
    ]
    sized = SizedPolicy(policy, assignment, sizes, instances, result, alone)
    sized.kept = [is_kept(*sized.measured(k), slo) for k, slo in enumerate(slos)]
    if policy.tiers[-1].limits.max_model_len < question.max_model_len:
        sized.rejected = assignment.rejected
    return sized


def pool_slo(question: Question, tier: Tier, traffic: PoolTraffic) -> Slo:
    """Return the SLO that applies to a pool's own requests.

    The last of several pools also gets some requests in the range of smaller pools.
    These share the pool with long requests and have the same SLO.
    """
    if tier.limits.max_model_len < question.max_model_len or traffic.share > 0.5:
        return question.slo
    if question.long_promise_given:
        return replace(question.slo, p99_ttft_s=question.slo.long_ttft_s)
    # Derive the limit from the fleet's own GPU, so that a pool with a slower GPU has
    # the same SLO.
    engine = question.engine
    limits = engine.limits(
        tier.limits.max_model_len,
        question.max_num_seqs,
        question.max_num_batched_tokens,
    )
    promise_s = long_promise_s(
        traffic.lengths.prompts,
        limits,
        engine.step_time,
        question.slo.long_ttft_s,
    )
    return replace(question.slo, p99_ttft_s=promise_s, long_ttft_s=promise_s)


def pool_specs(
    question: Question, policy: FleetPolicy, instances: Sequence[int]
) -> list[PoolSpec]:
    """Return the pools of a policy with this number of instances each."""
    return [
        PoolSpec(
            tier.name,
            count,
            tier.limits,
            question.hardware(tier.name).engine.step_time,
            tier.threshold_tokens,
        )
        for tier, count in zip(policy.tiers, instances, strict=True)
    ]


def _verify(
    question: Question,
    policy: FleetPolicy,
    instances: Sequence[int],
    slos: Sequence[Slo],
) -> Result:
    """Simulate the whole fleet with its router."""
    specs = [
        replace(spec, slo=slo)
        for spec, slo in zip(pool_specs(question, policy, instances), slos, strict=True)
    ]
    # Use different random traffic from that with which the pools were sized.
    run = RunSettings(
        question.verified_requests,
        question.seed + 1,
        question.declared,
        most_requests=_MOST_TIMES * question.verified_requests,
        enough=Precise(
            _SHARE_TOGETHER * question.verified_requests,
            PRECISION if policy.is_planned else COMPARED_PRECISION,
        ),
        taught=question.verified_requests // 20,
    )
    if isinstance(question.arrivals, Replay):
        run = replace(in_rounds(run, question.arrivals, _ROUNDS), enough=always)
    return simulate(specs, question.stream, policy.strategy, run)
