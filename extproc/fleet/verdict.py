"""The answer to a plan's question, as one document and as a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from extproc.fleet.cost import HOURS_PER_YEAR, formula_saving, saving, usd_per_year
from extproc.fleet.figures import named, plain, pool_figures
from extproc.fleet.planning import Question, SizedPolicy
from extproc.fleet.sensitivity import SweepPoint

BASELINE = "homogeneous-worst-case"
PAGED = "homogeneous-paged"
SPLIT = "split"
#: Two policies this close are the same as far as a simulated P99 can tell.
NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Prices:
    """What an instance costs.

    Attributes:
        hours_per_year: 8,760; the first paper multiplies by 8,640 in one place.
    """

    usd_per_gpu_hour: float
    gpus_per_instance: int
    hours_per_year: float = HOURS_PER_YEAR

    def usd_per_year(self, instances: float) -> float:
        """Dollars a year of so many instances."""
        return usd_per_year(
            instances,
            self.gpus_per_instance,
            self.usd_per_gpu_hour,
            self.hours_per_year,
        )


def answer(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    prices: Prices,
    sweep: Sequence[SweepPoint] = (),
) -> dict[str, Any]:
    """Everything about the sized policies, as a JSON document."""
    split, worst, paged = sized[SPLIT], sized[BASELINE], sized[PAGED]
    total = split.total
    alpha = _short_fraction(question)
    rho = split.sizes[0].instance_rate / worst.sizes[0].instance_rate
    saved = worst.total - total
    return {
        "workload": question.workload.name,
        "source": question.workload.source,
        "synthetic": question.workload.synthetic,
        "rate": plain(question.rate),
        "traffic": question.traffic,
        "engine": question.engine.name,
        "gpus_per_instance": prices.gpus_per_instance,
        "pools": _pools(split),
        "instances": total,
        "headroom": question.headroom,
        "gpus": total * prices.gpus_per_instance,
        "slo_met": split.slo_met,
        "baselines": {
            name: _baseline(policy, total)
            for name, policy in sized.items()
            if name != SPLIT
        },
        "alpha": plain(alpha),
        "routed_short_fraction": plain(1 - split.assignment.pools[-1].share),
        "rho": plain(rho),
        "rho_without_worst_case": plain(
            split.sizes[0].instance_rate / paged.sizes[0].instance_rate
        ),
        "formula_saving_pct": _percent(formula_saving(alpha, rho)),
        "saving_pct": _percent(saving(worst.total, total)),
        "saving_from_not_sizing_for_the_worst_case_pct": _percent(
            saving(worst.total, paged.total)
        ),
        "saving_from_the_split_pct": _percent((paged.total - total) / worst.total),
        "dollars_per_year": round(prices.usd_per_year(total)),
        "dollars_per_year_saved": round(prices.usd_per_year(saved)),
        "dollars_per_year_saved_against_paged": round(
            prices.usd_per_year(paged.total - total)
        ),
        "usd_per_gpu_hour": prices.usd_per_gpu_hour,
        "hours_per_year": prices.hours_per_year,
        "verdict": verdict(sized),
        "misrouted_short": plain(split.result.misrouted_short),
        "misrouted_long": plain(split.result.misrouted_long),
        "overflow_share": plain(split.result.overflow_share),
        "truncated_share": plain(split.result.truncated_share),
        "sweep": [
            {key: plain(value) for key, value in asdict(point).items()}
            for point in sweep
        ],
        "slo": {key: plain(value) for key, value in asdict(question.slo).items()},
        "declared": str(question.declared),
        "seed": question.seed,
    }


def _short_fraction(question: Question) -> float:
    """Share of requests whose true budget is within the first threshold."""
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), 200_000
    )
    return float((prompts + outputs <= question.thresholds[0]).mean())


def _pools(policy: SizedPolicy) -> list[dict[str, Any]]:
    return [
        {
            "name": tier.name,
            "instances": policy.instances[index],
            "max_model_len": tier.limits.max_model_len,
            "max_num_seqs": tier.limits.max_num_seqs,
            "max_num_batched_tokens": tier.limits.max_num_batched_tokens,
            "threshold_tokens": tier.threshold_tokens,
            "share_of_requests": plain(policy.assignment.pools[index].share),
            "instance_rate_at_saturation": plain(policy.sizes[index].instance_rate),
            "slo_met": policy.kept[index],
            **_figures(policy, index),
        }
        for index, tier in enumerate(policy.policy.tiers)
    ]


def _figures(policy: SizedPolicy, index: int) -> dict[str, Any]:
    """Figures of a pool, and the half widths of their 95 % intervals."""
    result, position = policy.measured(index)
    saturated = policy.sizes[index].instance_rate * policy.instances[index]
    figures = pool_figures([result], position, saturated)
    values = named(figures)
    return {
        **{name: plain(each.value) for name, each in values.items()},
        "half_widths": {name: plain(each.half_width) for name, each in values.items()},
        "requests_measured": figures.requests,
        "measured_s": plain(result.duration_s),
        "fill_s": plain(result.fill_s),
        "state": str(result.state),
        "measured_alone": policy.alone[index] is not None,
    }


def _baseline(policy: SizedPolicy, ours: int) -> dict[str, Any]:
    result = policy.result
    ttft, tpot = result.p99(lambda p: p.ttft), result.p99(lambda p: p.tpot)
    return {
        "title": policy.policy.title,
        "instances": policy.total,
        "saving_pct": _percent(saving(policy.total, ours)),
        "max_num_seqs": [tier.limits.max_num_seqs for tier in policy.policy.tiers],
        "slo_met": policy.slo_met,
        "state": str(result.state),
        "rejected_share": plain(policy.assignment.rejected),
        "p99_ttft_s": plain(ttft.value),
        "p99_tpot_s": plain(tpot.value),
        "half_widths": {
            "p99_ttft_s": plain(ttft.half_width),
            "p99_tpot_s": plain(tpot.half_width),
        },
        "requests_measured": result.measured,
        "preemptions": result.preemptions,
        "truncated_share": plain(result.truncated_share),
        "overflow_share": plain(result.overflow_share),
        "misrouted_short": plain(result.misrouted_short),
        "misrouted_long": plain(result.misrouted_long),
    }


def verdict(sized: Mapping[str, SizedPolicy]) -> str:
    """Whether the split pays, and what the saving is made of, in a sentence or two."""
    split, worst, paged = sized[SPLIT], sized[BASELINE], sized[PAGED]
    total = saving(worst.total, split.total)
    own = saving(paged.total, split.total)
    # One instance is as close as two small fleets can be told apart.
    noise = max(NOISE, 1.5 / paged.total)
    parts = []
    if split.slo_met and not paged.slo_met:
        parts.append(
            "The split keeps the promise of first tokens where one pool cannot at any "
            "sensible size: a long prompt holds up whoever is behind it."
        )
    elif own > noise:
        parts.append(
            f"The split pays: {own:.0%} fewer instances than one pool without "
            "worst-case max_num_seqs."
        )
    elif own < -noise:
        parts.append(
            f"The split does not pay: it takes {-own:.0%} more instances than one pool "
            "without worst-case max_num_seqs."
        )
    else:
        parts.append(
            "The split itself saves nothing that could be told from noise "
            f"({own:+.1%} against one pool without worst-case max_num_seqs)."
        )
    if total > noise and paged.slo_met and worst.slo_met:
        unsized = saving(worst.total, paged.total)
        parts.append(
            f"Of the {total:.1%} against the papers' baseline, {unsized:.1%} come from "
            "not sizing max_num_seqs for the worst case, which needs no router."
        )
    if not split.slo_met:
        parts.append("The split misses the SLO at the size shown.")
    return " ".join(parts)


def _percent(share: float) -> float:
    return round(100 * share, 1)
