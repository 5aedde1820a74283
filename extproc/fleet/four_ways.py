"""Four fleets that meet one SLO, with and without split and disaggregation."""

import math
from dataclasses import dataclass

from extproc.fleet.disaggregation import Size, size
from extproc.fleet.planning import SizedPolicy, pool_slo
from extproc.fleet.prefill_decode import KvTransfer, Parts
from extproc.fleet.question import Question
from extproc.fleet.replay import Replay
from extproc.fleet.slo import Slo
from extproc.fleet.workload import Arrivals, Lengths, Thinned

#: Maximum number of tokens per step of a prefill instance. No request decodes there, so
#: a long step delays no decoding.
PREFILL_BATCHED_TOKENS = 8192
#: Minimum number of requests to measure for each size. Half of a plan's requests per
#: tried size are measured if that is more. A run simulates at least as many again.
_LEAST_MEASURED = 500
#: Two ways count as equal if their relative difference is smaller, since a simulated
#: P99 is not more precise than that.
_NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Pair:
    """Prefill and decode instances for one class of requests."""

    name: str
    share_of_requests: float
    prefill: int
    decode: int
    slo_met: bool
    """Whether prefill and decode instances together meet the SLO."""
    p99_ttft_s: float | None
    p99_tpot_s: float | None
    mean_transfer_s: float | None
    """Time from the end of the prefill to the last byte of the KV cache."""
    prefill_utilization: float | None
    mean_decoding: float | None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the fleet."""

    name: str
    instances: int
    gpus: int
    slo_met: bool
    pairs: tuple[Pair, ...] = ()
    """Instances of a disaggregated way; empty for the other ways."""


@dataclass(frozen=True, slots=True)
class FourWays:
    """The four ways to run the fleet."""

    ways: tuple[Way, ...]
    transfer_bytes_per_s: float
    """Network bandwidth of one instance."""
    kv_bytes_per_token: float
    verdict: str
    """A sentence about the way that needs the fewest GPUs."""


def four_ways(
    question: Question,
    one_pool: SizedPolicy,
    split: SizedPolicy,
    transfer: KvTransfer,
) -> FourWays:
    """Size the disaggregated ways, and compare them with the two ways sized before.

    Raises:
        ValueError: the arrivals are from a file, which cannot be thinned.
    """
    arrivals = question.arrivals
    if isinstance(arrivals, Replay):
        raise ValueError("arrivals: from a file; expected a random arrival process")
    gpus = question.engine.gpus
    whole = _pair(
        question,
        transfer,
        "all",
        1.0,
        question.workload.lengths,
        question.slo,
        arrivals,
    )
    classes = tuple(
        _pair(
            question,
            transfer,
            tier.name,
            traffic.share,
            traffic.lengths,
            pool_slo(question, tier, traffic),
            Thinned(arrivals, traffic.share),
        )
        for tier, traffic in zip(
            split.policy.tiers, split.assignment.pools, strict=True
        )
        if len(traffic.lengths.prompts)
    )
    ways = (
        Way("one pool", one_pool.total, one_pool.total * gpus, one_pool.slo_met),
        Way("split", split.total, split.total * gpus, split.slo_met),
        _way("disaggregated", (whole,), gpus),
        _way("split and disaggregated", classes, gpus),
    )
    return FourWays(ways, transfer.bytes_per_s, transfer.bytes_per_token, verdict(ways))


def _pair(
    question: Question,
    transfer: KvTransfer,
    name: str,
    share: float,
    lengths: Lengths,
    slo: Slo,
    arrivals: Arrivals,
) -> Pair:
    engine = question.engine
    longest, seqs = question.max_model_len, question.max_num_seqs
    measured = max(_LEAST_MEASURED, question.tried_requests // 2)
    parts = Parts(
        engine.limits(longest, seqs, PREFILL_BATCHED_TOKENS),
        engine.limits(longest, seqs, question.max_num_batched_tokens),
        engine.step_time,
        transfer,
        question.rate * share,
        arrivals,
        lengths,
    )
    return _described(
        name, share, size(parts, slo, question.headroom, question.seed, measured)
    )


def _described(name: str, share: float, found: Size) -> Pair:
    figures = found.figures
    return Pair(
        name,
        share,
        found.prefill,
        found.decode,
        found.met,
        None if figures is None else _finite(figures.p99_ttft_s),
        None if figures is None else _finite(figures.p99_tpot_s),
        None if figures is None else _finite(figures.transfer_s),
        None if figures is None else _finite(figures.prefill_utilization),
        None if figures is None else _finite(figures.mean_decoding),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _way(name: str, pairs: tuple[Pair, ...], gpus: int) -> Way:
    instances = sum(pair.prefill + pair.decode for pair in pairs)
    met = all(pair.slo_met for pair in pairs)
    return Way(name, instances, instances * gpus, met, pairs)


def verdict(ways: tuple[Way, ...]) -> str:
    """Return a sentence about the way that meets the SLO with the fewest GPUs.

    Of ways within 3 % of each other, the first is chosen, because it is the simplest.
    """
    kept = [way for way in ways if way.slo_met]
    if not kept:
        return "No way meets the SLO at any size tried."
    fewest = min(way.gpus for way in kept)
    chosen = next(way for way in kept if way.gpus <= (1 + _NOISE) * fewest)
    others = [
        f"{way.name} {way.gpus:,}" if way.slo_met else f"{way.name} misses it"
        for way in ways
        if way is not chosen
    ]
    return (
        f"The SLO takes {chosen.gpus:,} GPUs with {chosen.name}; {', '.join(others)}."
    )
