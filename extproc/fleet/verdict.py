"""The answer to a plan's question, as one document and as a sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from extproc.fleet.cost import HOURS_PER_YEAR, formula_saving, saving, usd_per_year
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
        "rate": question.rate,
        "engine": question.engine.name,
        "gpus_per_instance": prices.gpus_per_instance,
        "pools": _pools(split),
        "instances": total,
        "gpus": total * prices.gpus_per_instance,
        "slo_met": split.slo_met,
        "baselines": {
            name: _baseline(policy, total)
            for name, policy in sized.items()
            if name != SPLIT
        },
        "alpha": _plain(alpha),
        "routed_short_fraction": _plain(1 - split.assignment.pools[-1].share),
        "rho": _plain(rho),
        "rho_without_worst_case": _plain(
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
        "misrouted_short": _plain(split.result.misrouted_short),
        "misrouted_long": _plain(split.result.misrouted_long),
        "overflow_share": _plain(split.result.overflows / split.result.measured),
        "truncated_share": _plain(split.result.truncated / split.result.measured),
        "sweep": [
            {key: _plain(value) for key, value in asdict(point).items()}
            for point in sweep
        ],
        "slo": {key: _plain(value) for key, value in asdict(question.slo).items()},
        "declared": str(question.declared),
        "seed": question.seed,
    }


def _short_fraction(question: Question) -> float:
    """Share of requests whose true budget is within the first threshold."""
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), 200_000
    )
    return float((prompts + outputs <= question.thresholds[0]).mean())


def _pools(split: SizedPolicy) -> list[dict[str, Any]]:
    return [
        {
            "name": tier.name,
            "instances": instances,
            "max_model_len": tier.limits.max_model_len,
            "max_num_seqs": tier.limits.max_num_seqs,
            "max_num_batched_tokens": tier.limits.max_num_batched_tokens,
            "threshold_tokens": tier.threshold_tokens,
            "share_of_requests": _plain(traffic.share),
            "instance_rate_at_saturation": _plain(size.instance_rate),
            "p50_ttft_s": _plain(result.ttft.quantile(0.5)),
            "p99_ttft_s": _plain(result.ttft.quantile(0.99)),
            "p99_tpot_s": _plain(result.tpot.quantile(0.99)),
            "p99_wait_s": _plain(result.wait.quantile(0.99)),
            "preemption_rate": _plain(result.preemption_rate),
            "mean_running": _plain(result.mean_running),
            "busy_share": _plain(result.busy_share),
            "mean_kv_cache_usage": _plain(result.mean_kv_cache_usage),
        }
        for tier, instances, traffic, size, result in zip(
            split.policy.tiers,
            split.instances,
            split.assignment.pools,
            split.sizes,
            split.result.pools,
            strict=True,
        )
    ]


def _baseline(policy: SizedPolicy, ours: int) -> dict[str, Any]:
    result = policy.result
    return {
        "title": policy.policy.title,
        "instances": policy.total,
        "saving_pct": _percent(saving(policy.total, ours)),
        "max_num_seqs": [tier.limits.max_num_seqs for tier in policy.policy.tiers],
        "slo_met": policy.slo_met,
        "rejected_share": _plain(policy.assignment.rejected),
        "p99_ttft_s": _plain(result.ttft.quantile(0.99)),
        "p99_tpot_s": _plain(result.tpot.quantile(0.99)),
        "preemptions": result.preemptions,
        "truncated_share": _plain(result.truncated / result.measured),
        "overflow_share": _plain(result.overflows / result.measured),
        "misrouted_short": _plain(result.misrouted_short),
        "misrouted_long": _plain(result.misrouted_long),
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


def _plain(value: float) -> float | int | None:
    """A number as JSON has it: six digits, and None for what is not one."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _percent(share: float) -> float:
    return round(100 * share, 1)
