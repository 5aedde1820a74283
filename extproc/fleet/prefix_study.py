"""What prefix caching saves, and what the split does to it.

A split gives each class its own instances, and so its own caches. A conversation that
outgrows the threshold moves once, and leaves its prefix behind. On the other hand, a
class has fewer instances than the whole, so that a load balancer that does not look at
prefixes meets one more often by chance. Both are counted here, on the fleets that a
plan has sized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from extproc.fleet.balancing import Balancing
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.prefixes import are_counts, hit_share
from extproc.fleet.question import Question
from extproc.fleet.replay import Replay
from extproc.fleet.results import PoolResult
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.steady import RunSettings
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.routing.misroute import right_position
from extproc.routing.policy import Policy


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """What one fleet finds, with one load balancer."""

    fleet: str
    instances: tuple[int, ...]
    balancing: str
    cached_share: float
    """Of the prompt tokens, those found; ``pools``: in each pool."""
    pools: tuple[float, ...]
    p99_ttft_s: float
    """Of all requests."""


@dataclass(frozen=True, slots=True)
class PrefixStudy:
    """What a plan says of prefix caching."""

    unlimited_share: float
    """Of the prompt tokens, found in one cache that forgets nothing."""
    unlimited_share_split: float
    """In one such cache for each class; the difference is what conversations lose that
    outgrow a threshold."""
    instances: dict[str, int]
    """Of one pool and of the split, sized with and without caching."""
    hits: list[PrefixHits]
    """Of both fleets, with each load balancer; with the usual one if ``reported``."""
    reported: bool = False
    """Whether the shares are what usage reports: what a split or another load balancer
    does to them cannot be known then."""


def without_prefixes(question: Question) -> Question | None:
    """The question without caching; None if nothing is known to be cached."""
    replay = question.arrivals
    if not isinstance(replay, Replay) or replay.prefixes is None:
        return None
    if not question.engine.enable_prefix_caching:
        return None
    return replace(question, arrivals=replace(replay, prefixes=None))


def study(
    question: Question,
    one: SizedPolicy,
    split: SizedPolicy,
    uncached: Mapping[str, SizedPolicy],
) -> PrefixStudy:
    """Simulate a round of the file on the fleets of a plan, with each load balancer.

    Args:
        question: of requests that have prefixes (:func:`without_prefixes`).
        one, split: sized for it.
        uncached: the same two, by name, sized without caching.
    """
    replay = question.arrivals
    assert isinstance(replay, Replay)
    assert replay.prefixes is not None
    prompts, outputs = replay.prompts.tolist(), replay.outputs.tolist()
    policy = Policy([tier.routing_pool for tier in split.policy.tiers])
    classes = [
        right_position(policy, prompt + output)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    block_size = question.engine.block_size
    reported = are_counts(replay.prefixes)
    return PrefixStudy(
        hit_share(replay.prefixes, prompts, None, block_size),
        hit_share(replay.prefixes, prompts, classes, block_size),
        {
            "one pool, no caching": uncached[one.policy.name].total,
            "one pool, caching": one.total,
            "split, no caching": uncached[split.policy.name].total,
            "split, caching": split.total,
        },
        [
            _hits(question, replay, name, sized, balancing)
            for name, sized in (("one pool", one), ("split", split))
            for balancing in Balancing
            if not reported or balancing is Balancing.LEAST_REQUEST
        ],
        reported,
    )


def _hits(
    question: Question,
    replay: Replay,
    name: str,
    sized: SizedPolicy,
    balancing: Balancing,
) -> PrefixHits:
    specs = [
        PoolSpec(
            tier.name,
            count,
            tier.limits,
            question.engine.step_time,
            tier.threshold_tokens,
            balancing=balancing,
        )
        for tier, count in zip(sized.policy.tiers, sized.instances, strict=True)
    ]
    run = RunSettings(replay.requests, question.seed, question.declared, fill=0)
    oracle = StrategySpec(StrategyName.ORACLE, question.workload.mix)
    result = simulate(specs, replay, replace(oracle), run)
    whole = PoolResult("all", sized.total)
    for pool in result.pools:
        whole.merge(pool)
    return PrefixHits(
        name,
        tuple(sized.instances),
        str(balancing),
        whole.cached_share,
        tuple(pool.cached_share for pool in result.pools),
        whole.ttft.quantile(0.99),
    )
