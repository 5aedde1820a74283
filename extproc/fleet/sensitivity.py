"""The sensitivity of a plan to its threshold and to the router's errors.

Both analyses use throughput alone and do not simulate queues. Their results show the
shape of a curve and help to choose parameters to simulate, but are not precise enough
for numbers of GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extproc.fleet.assignment import Inquiry, Tier, assign
from extproc.fleet.cost import formula_saving
from extproc.fleet.question import Question
from extproc.fleet.sizing import saturated_rate
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Recorded

Mask = npt.NDArray[np.bool_]

_SATURATING = 1000
THRESHOLDS = (1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 32_768)
VARIATION_FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A two-pool split at one threshold, with error-free routing.

    Attributes:
        short_fraction, throughput_gain: alpha and rho of the papers' formula, where rho
            is relative to a homogeneous pool sized for the worst case.
        worst_case_saving, paged_saving: savings of the split with these values of
            ``max_num_seqs`` over that homogeneous pool.
        unsplit_paged_saving: saving of one pool without worst-case ``max_num_seqs``.
        formula: the papers' saving, alpha (1 - 1/rho).
    """

    threshold_tokens: int
    short_fraction: float
    throughput_gain: float
    worst_case_saving: float
    paged_saving: float
    unsplit_paged_saving: float
    formula: float


def sweep(question: Question, thresholds: Sequence[int]) -> list[SweepPoint]:
    """Return the savings of a split at each threshold below ``max_model_len``."""
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), 200_000
    )
    totals = prompts + outputs
    fits = totals <= question.max_model_len
    prompts, outputs, totals = prompts[fits], outputs[fits], totals[fits]

    def rate(chosen: Mask, max_model_len: int, seqs: int | None) -> float:
        limits = question.engine.limits(
            max_model_len, seqs, question.max_num_batched_tokens
        )
        return saturated_rate(
            limits,
            question.engine.step_time,
            Recorded(prompts[chosen], outputs[chosen]),
            question.seed,
            _SATURATING,
        )

    def fraction_of_whole(short: Mask, threshold: int, seqs: int | None) -> float:
        alpha = float(short.mean())
        needed = 0.0
        if alpha > 0:
            needed += alpha / rate(short, threshold, seqs)
        if alpha < 1:
            needed += (1 - alpha) / rate(~short, question.max_model_len, seqs)
        return needed * homogeneous

    everything = totals > 0
    homogeneous = rate(everything, question.max_model_len, None)
    paged = rate(everything, question.max_model_len, question.max_num_seqs)
    points = []
    for threshold in thresholds:
        short = totals <= threshold
        if threshold >= question.max_model_len or not short.any():
            continue
        alpha = float(short.mean())
        gain = rate(short, threshold, None) / homogeneous
        points.append(
            SweepPoint(
                threshold,
                alpha,
                gain,
                1 - fraction_of_whole(short, threshold, None),
                1 - fraction_of_whole(short, threshold, question.max_num_seqs),
                1 - homogeneous / paged,
                formula_saving(alpha, gain),
            )
        )
    return points


def best_point(sweep: Sequence[SweepPoint]) -> tuple[SweepPoint, float] | None:
    """Return the threshold with the largest saving compared with one pool.

    Returns:
        The point with this threshold, and the share of instances that it saves compared
            with one pool of the same ``max_num_seqs``, negative if it needs more; None
            for an empty sweep.
    """
    if not sweep:
        return None

    def own_saving(point: SweepPoint) -> float:
        return 1 - (1 - point.paged_saving) / (1 - point.unsplit_paged_saving)

    best = max(sweep, key=own_saving)
    return best, own_saving(best)


@dataclass(frozen=True, slots=True)
class MisroutePoint:
    """A strategy's errors for a given variation of bytes per token."""

    strategy: StrategyName
    variation_factor: float
    under: float
    """Share of requests sent to a smaller pool than the right one; ``over``: to a
    larger pool."""
    over: float


def misroutes(
    question: Question,
    tiers: tuple[Tier, ...],
    strategies: Sequence[StrategyName],
    factors: Sequence[float] = VARIATION_FACTORS,
    n: int = 3000,
) -> list[MisroutePoint]:
    """Assign by each strategy the requests within a factor of two of the threshold.

    The shares refer to all requests; those further from the threshold count as
    correctly routed.
    """
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), 500_000
    )
    totals = prompts + outputs
    threshold = tiers[0].threshold_tokens
    near = (totals > threshold / 2) & (totals <= 2 * threshold)
    weight = float(near.mean())
    pool = Recorded(prompts[near], outputs[near])
    if not len(pool.prompts):
        return [MisroutePoint(s, f, 0.0, 0.0) for s in strategies for f in factors]
    points = []
    for strategy in strategies:
        for factor in factors:
            spec = StrategySpec(strategy, question.workload.mix, factor)
            inquiry = Inquiry(tiers, spec, question.seed, question.declared, n, n // 4)
            asked = assign(pool, inquiry, fill=False)
            points.append(
                MisroutePoint(
                    strategy, factor, weight * asked.under, weight * asked.over
                )
            )
    return points
