"""The savings of prefix caching, and the effect of the split on cache hits.

A split gives each class separate instances, and so separate caches. A conversation that
grows past the threshold moves once, and loses its cached prefix. On the other hand, a
class has fewer instances than the whole fleet, so a load balancer that ignores prefixes
more often chooses an instance with the cached prefix by chance. This module simulates
both effects on a plan's fleets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from extproc.fleet.balancing import Balancing
from extproc.fleet.planning import SizedPolicy, pool_specs
from extproc.fleet.prefixes import are_counts, hit_share
from extproc.fleet.question import Question
from extproc.fleet.replay import Replay
from extproc.fleet.results import PoolResult
from extproc.fleet.simulation import simulate
from extproc.fleet.steady import RunSettings
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.routing.misroute import right_position
from extproc.routing.policy import Policy


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """The cache hits of one fleet with one load balancer."""

    fleet: str
    instances: tuple[int, ...]
    balancing: str
    cached_share: float
    """Share of prompt tokens found in the cache; ``pools``: this share in each pool."""
    pools: tuple[float, ...]
    p99_ttft_s: float
    """P99 of TTFT and TPOT over all requests."""


@dataclass(frozen=True, slots=True)
class PrefixStudy:
    """The results of a plan on prefix caching."""

    unlimited_share: float
    """Share of prompt tokens found in one cache of unlimited size."""
    unlimited_share_split: float
    """The same share with one such cache per class. The difference is what
    conversations lose when they grow past a threshold."""
    instances: dict[str, int]
    """Number of instances in the one-pool fleet and in the split, each sized with and
    without caching."""
    hits: list[PrefixHits]
    """Hits of both fleets with each load balancer, or with only the default one if
    ``reported``."""
    reported: bool = False
    """Whether the shares come from the requests' usage. If so, the effect of a split or
    of another load balancer on the shares is unknown."""


def without_prefixes(question: Question) -> Question | None:
    """Return the question without caching; None if no shared prefixes are known."""
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
    """Simulate one round of a replayed file on a plan's fleets with each balancer.

    Args:
        question: the plan's inputs, with known prefixes (see :func:`without_prefixes`).
        one, split: the policies sized for the question.
        uncached: the same policies sized without caching, keyed by name.
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
        replace(spec, balancing=balancing)
        for spec in pool_specs(question, sized.policy, sized.instances)
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
