"""The number of prefill and decode instances that meets an SLO.

The prefill pool and the decode pool are first sized separately. A larger pool is
represented by eight instances with their share of its traffic. Then both pools are
simulated together (:mod:`extproc.fleet.prefill_decode`), as a smaller fleet of the same
ratio with at least eight instances in each pool. The SLO and the headroom are the same
as for pools whose instances both prefill and decode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from extproc.fleet.prefill_decode import MEASURED, Figures, Parts, simulate
from extproc.fleet.slo import COVERED, Slo
from extproc.fleet.steptime import StepTime

#: Number of instances to simulate in place of a larger prefill or decode pool.
_SUBPOOL = 8
#: Maximum size to try, as a multiple of the size that throughput alone requires.
_MOST_TIMES = 2.5
#: Maximum number of times that a pool grows if both pools together miss the SLO.
_JOINT_TRIES = 6
#: Utilization of the decode pool above which requests may have to wait for it.
_FULL = 0.98


@dataclass(frozen=True, slots=True)
class Size:
    """Number of instances of the prefill pool and the decode pool.

    A pool that misses its limit alone at any size has the number that throughput and
    headroom require.
    """

    prefill: int
    decode: int
    met: bool
    """Whether both pools together meet the SLO; False if no size meets it."""
    figures: Figures | None
    """Figures of both pools together, if simulated."""

    @property
    def instances(self) -> int:
        """Total number of instances."""
        return self.prefill + self.decode


def size(
    parts: Parts, slo: Slo, headroom: float, seed: int, measured: int = MEASURED
) -> Size:
    """Return the minimum size of both pools that meets the SLO.

    First, size each pool alone: find the minimum number of decode instances that meets
    the TPOT limit and the minimum number of prefill instances that meets the TTFT
    limit. Then simulate both pools together, and add instances until both limits are
    met.

    Args:
        headroom: share of each pool's saturated rate to leave free, in [0, 1).
    """
    least = _by_throughput(parts, slo, headroom, seed)
    sizes = []
    for part, count in enumerate(least):
        alone = partial(_alone_kept, parts, part, slo=slo, seed=seed, measured=measured)
        sizes.append(_fewest(count, alone))
    prefill, decode = (
        found or count for found, count in zip(sizes, least, strict=True)
    )
    if None in sizes:
        return Size(prefill, decode, False, None)
    for _ in range(_JOINT_TRIES):
        found = _together(parts, prefill, decode, slo, seed, measured)
        if found.kept:
            return Size(prefill, decode, True, found)
        # TTFT includes the wait for a decode instance, so both pools grow if TTFT and
        # TPOT are late.
        if found.late_tpot > 1 - COVERED or found.decode_utilization > _FULL:
            decode += max(1, decode // 25)
        if found.late_ttft > 1 - COVERED:
            prefill += max(1, prefill // 25)
    return Size(prefill, decode, False, found)


def _alone_kept(
    parts: Parts, part: int, count: int, slo: Slo, seed: int, measured: int
) -> bool:
    """Return whether one pool meets the SLO if the other takes no time.

    A pool of more than eight instances is represented by eight, with their share of
    the requests.
    """
    simulated = min(count, _SUBPOOL)
    scaled = parts.thinned(simulated / count)
    sizes = (simulated, 0) if part == 0 else (0, simulated)
    return simulate(scaled, *sizes, slo, seed, measured).kept


def _fewest(least: int, enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number >= ``least`` that is enough, or None."""
    if enough(least):
        return least
    low, high = least, math.ceil(_MOST_TIMES * least) + 1
    if not enough(high):
        return None
    # A simulated P99 is not more precise than 2 %.
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _by_throughput(
    parts: Parts, slo: Slo, headroom: float, seed: int
) -> tuple[int, int]:
    """Return the number of instances that throughput and headroom require."""
    prompts, outputs = parts.lengths.draw(np.random.default_rng(seed), 20_000)
    step = parts.step_time
    budget = parts.prefill.max_num_batched_tokens
    token_s = step.fixed_s(budget, 0) / budget
    prefill_s = float(
        (token_s * prompts + step.pair_s * prompts * (prompts + 1) / 2).mean()
    )
    # A request occupies its slot for a time proportional to the answer's length, so
    # each request is weighted by that length.
    weights = outputs / outputs.sum()
    context = float(((prompts + outputs / 2) * weights).sum())
    held = float(((prompts + outputs) * weights).sum())
    seqs = min(
        parts.decode.max_num_seqs,
        parts.decode.usable_blocks * parts.decode.block_size / held,
        _seqs_within(step, context, slo.p99_tpot_s),
    )
    step_s = step.fixed_s(0, round(seqs)) + step.context_s * context * seqs
    decode_rate = seqs / (float(outputs.mean()) * step_s)
    busy = parts.rate / (1 - headroom)
    return (
        max(1, math.ceil(busy * prefill_s)),
        max(1, math.ceil(busy / decode_rate)),
    )


def _seqs_within(step: StepTime, context: float, tpot_s: float) -> float:
    """Return the maximum number of sequences whose step meets the TPOT limit."""
    seqs = 1
    while seqs < 4096:
        wider = math.ceil(1.1 * seqs)
        if step.fixed_s(0, wider) + step.context_s * context * wider > tpot_s:
            break
        seqs = wider
    return float(seqs)


def _together(
    parts: Parts, prefill: int, decode: int, slo: Slo, seed: int, measured: int
) -> Figures:
    """Simulate a large fleet as a smaller one with nearly the same ratio of pools.

    The smaller of its pools gets 8 to 16 instances, whichever number comes closest to
    the ratio.
    """
    smaller = min(prefill, decode)
    if smaller <= _SUBPOOL:
        return simulate(parts, prefill, decode, slo, seed, measured)

    def off(size: int) -> float:
        other = max(prefill, decode) * size / smaller
        return abs(round(other) / other - 1)

    size = min(range(_SUBPOOL, min(2 * _SUBPOOL, smaller) + 1), key=off)
    share = size / smaller
    return simulate(
        parts.thinned(share),
        round(prefill * share),
        round(decode * share),
        slo,
        seed,
        measured,
    )
