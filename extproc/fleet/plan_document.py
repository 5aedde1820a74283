"""A plan as a document with every policy, its pools, its savings, and the advice.

A saving has a value only if both of the compared fleets meet the SLO and reject no
requests; otherwise it is None. All fields are typed, and :func:`as_json` returns the
JSON object of ``extproc plan --json``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extproc.fleet.cost import (
    HOURS_PER_YEAR,
    formula_saving,
    saving,
)
from extproc.fleet.energy_rows import EnergyRows
from extproc.fleet.expense import amount, gpus, unit, usd_per_hour
from extproc.fleet.figures import named, plain, pool_figures
from extproc.fleet.four_ways import FourWays
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.prefix_study import PrefixStudy
from extproc.fleet.question import Question
from extproc.fleet.sensitivity import SweepPoint, best_point
from extproc.fleet.slo import Slo
from extproc.fleet.verdict import BASELINE, PAGED, SPLIT, is_usable, verdict

_DRAWS = 200_000


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool of a policy: its settings and its simulated figures."""

    name: str
    engine: str
    """Model and GPUs of an instance."""
    gpus_per_instance: int
    instances: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    threshold_tokens: int
    share_of_requests: float
    """Share of requests that reach the pool."""
    alpha: float
    """Share of requests whose true budget is in the pool's range."""
    rho: float
    """Throughput of a saturated instance divided by that of an instance in today's
    fleet, which is one pool sized for the worst case."""
    instance_rate_at_saturation: float
    slo_met: bool
    figures: dict[str, float | int | None]
    """Figures of :class:`extproc.fleet.figures.PoolFigures` by name; None if too few
    requests were measured."""
    half_widths: dict[str, float | int | None]
    """Half the width of each figure's 95 % interval."""
    requests_measured: int
    measured_s: float
    fill_s: float
    state: str
    measured_alone: bool
    """Whether the pool was measured alone because too few of the fleet's requests
    reach it."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy and its figures.

    Attributes:
        max_num_seqs: value of this limit for each pool.
        saving_pct: saving of the split compared with this policy, in percent, measured
            in the plan's ``compared_by``; None for the split itself, and if the split
            or this policy misses the SLO or rejects requests.
        p99_ttft_s, p99_tpot_s: P99 over all pools of the policy.
    """

    title: str
    instances: int
    gpus: int
    instances_by_pool: list[int]
    max_num_seqs: list[int]
    saving_pct: float | None
    slo_met: bool
    state: str
    rejected_share: float
    p99_ttft_s: float | None
    p99_tpot_s: float | None
    half_widths: dict[str, float | int | None]
    requests_measured: int
    preemptions: int
    truncated_share: float
    overflow_share: float
    misrouted_short: float
    misrouted_long: float
    usd_per_year: int | None


@dataclass(frozen=True, slots=True)
class ThresholdAdvice:
    """The threshold that the sweep recommends."""

    threshold_tokens: int
    saving_pct: float
    """Saving compared with one pool of the same ``max_num_seqs``, by throughput alone.
    """
    split: bool
    """Whether to split the fleet at all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The complete result of planning.

    Attributes:
        policies: by name, including the split.
        instances, gpus, pools, slo_met: values of the split.
        compared_by: unit of the savings: instances if all pools have the same GPUs;
            otherwise dollars or, if a GPU has no price, GPUs.
        alpha: share of the requests below the last threshold; ``rho``: the throughput
            gain for which the papers' formula matches all pools below the last one.
        saving_pct: saving of the split compared with today's fleet, the sum of the next
            two fields.
        sweep: savings at other thresholds, by throughput alone; empty if not requested.
        disaggregation, energy: results of these options; None if not requested.
        prefix_caching: None unless the requests' shared prefixes are known.
    """

    workload: str
    source: str
    synthetic: bool
    rate: float
    traffic: str
    engine: str
    gpus_per_instance: int
    """Like ``engine``, this does not apply to pools that set another GPU type."""
    compared_by: str
    headroom: float
    pools: list[PoolRow]
    policies: dict[str, PolicyRow]
    instances: int
    gpus: int
    slo_met: bool
    alpha: float
    routed_short_fraction: float
    rho: float
    rho_without_worst_case: float
    formula_saving_pct: float
    saving_pct: float | None
    saving_from_not_sizing_for_the_worst_case_pct: float | None
    saving_from_the_split_pct: float | None
    dollars_per_year: int | None
    dollars_per_year_saved: int | None
    dollars_per_year_saved_against_paged: int | None
    usd_per_gpu_hour: float | None
    hours_per_year: float
    verdict: str
    advice: ThresholdAdvice | None
    sweep: list[SweepPoint]
    slo: Slo
    declared: str
    seed: int
    prefix_caching: PrefixStudy | None = None
    wall_time_s: float = 0.0
    disaggregation: FourWays | None = None
    energy: EnergyRows | None = None

    @property
    def baselines(self) -> dict[str, PolicyRow]:
        """Every policy except the split."""
        return {name: row for name, row in self.policies.items() if name != SPLIT}


def answer(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    sweep: Sequence[SweepPoint] = (),
    hours_per_year: float = HOURS_PER_YEAR,
) -> Plan:
    """Return the plan for the sized policies.

    Args:
        hours_per_year: hours that the fleet runs.
    """
    split, worst, paged = sized[SPLIT], sized[BASELINE], sized[PAGED]
    alphas = _fractions(question)
    rhos = [size.instance_rate / worst.sizes[0].instance_rate for size in split.sizes]
    alpha = 1 - alphas[-1]
    rho = _overall_gain(alphas[:-1], rhos[:-1])
    from_paging = _points(question, worst, paged)
    from_split = _points(question, paged, split, of=worst)
    dollars = _Dollars(question, hours_per_year)
    return Plan(
        workload=question.workload.name,
        source=question.workload.source,
        synthetic=question.workload.synthetic,
        rate=question.rate,
        traffic=question.traffic,
        engine=question.engine.name,
        gpus_per_instance=question.engine.gpus,
        compared_by=str(unit(question)),
        headroom=question.headroom,
        pools=_pools(question, split, alphas, rhos),
        policies={
            name: _policy(question, policy, split, dollars)
            for name, policy in _ordered(sized)
        },
        instances=split.total,
        gpus=gpus(question, split),
        slo_met=split.slo_met,
        alpha=alpha,
        routed_short_fraction=1 - split.assignment.pools[-1].share,
        rho=rho,
        rho_without_worst_case=(
            split.sizes[0].instance_rate / paged.sizes[0].instance_rate
        ),
        formula_saving_pct=percent(formula_saving(alpha, rho)),
        saving_pct=_points(question, worst, split),
        saving_from_not_sizing_for_the_worst_case_pct=from_paging,
        saving_from_the_split_pct=from_split,
        dollars_per_year=dollars.of(split),
        dollars_per_year_saved=dollars.saved(worst, split),
        dollars_per_year_saved_against_paged=dollars.saved(paged, split),
        usd_per_gpu_hour=question.engine.usd_per_gpu_hour or None,
        hours_per_year=hours_per_year,
        verdict=verdict(question, sized),
        advice=_advice(sweep),
        sweep=list(sweep),
        slo=question.slo,
        declared=str(question.declared),
        seed=question.seed,
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as one JSON object, in which a number has six digits or is None.

    A pool's figures and settings are in one object. ``baselines`` contains all policies
    except the split, which is in ``split``.
    """
    document: dict[str, Any] = _plain(dataclasses.asdict(plan))
    policies = document.pop("policies")
    document["split"] = policies.pop(SPLIT)
    document["baselines"] = policies
    document["pools"] = [pool | pool.pop("figures") for pool in document["pools"]]
    for key in ("misrouted_short", "misrouted_long"):
        document[key] = document["split"][key]
    for key in ("overflow_share", "truncated_share"):
        document[key] = document["split"][key]
    return document


def percent(share: float) -> float:
    """Return a share as a percentage with one decimal."""
    return round(100 * share, 1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return plain(value)
    return value


def _ordered(sized: Mapping[str, SizedPolicy]) -> list[tuple[str, SizedPolicy]]:
    return [(SPLIT, sized[SPLIT])] + [
        (name, policy) for name, policy in sized.items() if name != SPLIT
    ]


@dataclass(frozen=True, slots=True)
class _Dollars:
    """Costs of fleets in dollars a year."""

    question: Question
    hours_per_year: float

    def of(self, policy: SizedPolicy) -> int | None:
        """Return the cost of a fleet, or None without a price."""
        usd = usd_per_hour(self.question, policy)
        return None if usd is None else round(usd * self.hours_per_year)

    def saved(self, before: SizedPolicy, after: SizedPolicy) -> int | None:
        """Return the saving, or None if there is no price or if a fleet is unusable."""
        costs = [usd_per_hour(self.question, policy) for policy in (before, after)]
        if not is_usable(before) or not is_usable(after) or None in costs:
            return None
        first, second = (cost or 0.0 for cost in costs)
        return round((first - second) * self.hours_per_year)


def _points(
    question: Question,
    before: SizedPolicy,
    after: SizedPolicy,
    of: SizedPolicy | None = None,
) -> float | None:
    """Return the saving in percent of ``of`` or ``before``; None if one is unusable."""
    whole = of or before
    if not all(map(is_usable, (before, after, whole))):
        return None
    saved = amount(question, before) - amount(question, after)
    return percent(saved / amount(question, whole))


def _fractions(question: Question) -> list[float]:
    """Return for each pool the share of requests with a true budget in its range."""
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), _DRAWS
    )
    under = [
        float((prompts + outputs <= threshold).mean())
        for threshold in question.thresholds
    ]
    return [
        after - before
        for before, after in zip([0.0, *under], [*under, 1.0], strict=True)
    ]


def _overall_gain(alphas: Sequence[float], rhos: Sequence[float]) -> float:
    """Return the rho for which the papers' formula results in the pools' saving."""
    alpha = sum(alphas)
    needed = sum(a / r for a, r in zip(alphas, rhos, strict=True) if a)
    return alpha / needed if needed > 0 else 1.0


def _pools(
    question: Question,
    policy: SizedPolicy,
    alphas: Sequence[float],
    rhos: Sequence[float],
) -> list[PoolRow]:
    rows = []
    for index, tier in enumerate(policy.policy.tiers):
        result, position = policy.measured(index)
        saturated = policy.sizes[index].instance_rate * policy.instances[index]
        figures = pool_figures([result], position, saturated)
        values = named(figures)
        engine = question.hardware(tier.name).engine
        rows.append(
            PoolRow(
                name=tier.name,
                engine=engine.name,
                gpus_per_instance=engine.gpus,
                instances=policy.instances[index],
                max_model_len=tier.limits.max_model_len,
                max_num_seqs=tier.limits.max_num_seqs,
                max_num_batched_tokens=tier.limits.max_num_batched_tokens,
                threshold_tokens=tier.threshold_tokens,
                share_of_requests=policy.assignment.pools[index].share,
                alpha=alphas[index],
                rho=rhos[index],
                instance_rate_at_saturation=policy.sizes[index].instance_rate,
                slo_met=policy.kept[index],
                figures={name: plain(each.value) for name, each in values.items()},
                half_widths={k: plain(each.half_width) for k, each in values.items()},
                requests_measured=figures.requests,
                measured_s=result.duration_s,
                fill_s=result.fill_s,
                state=str(result.state),
                measured_alone=policy.alone[index] is not None,
            )
        )
    return rows


def _policy(
    question: Question, policy: SizedPolicy, split: SizedPolicy, dollars: _Dollars
) -> PolicyRow:
    result = policy.result
    ttft, tpot = result.p99(lambda p: p.ttft), result.p99(lambda p: p.tpot)
    saved = None
    if policy is not split and is_usable(policy) and is_usable(split):
        saved = percent(saving(amount(question, policy), amount(question, split)))
    return PolicyRow(
        title=policy.policy.title,
        instances=policy.total,
        gpus=gpus(question, policy),
        instances_by_pool=policy.instances,
        max_num_seqs=[tier.limits.max_num_seqs for tier in policy.policy.tiers],
        saving_pct=saved,
        slo_met=policy.slo_met,
        state=str(result.state),
        rejected_share=policy.assignment.rejected,
        p99_ttft_s=plain(ttft.value),
        p99_tpot_s=plain(tpot.value),
        half_widths={
            "p99_ttft_s": plain(ttft.half_width),
            "p99_tpot_s": plain(tpot.half_width),
        },
        requests_measured=result.measured,
        preemptions=result.preemptions,
        truncated_share=result.truncated_share,
        overflow_share=result.overflow_share,
        misrouted_short=result.misrouted_short,
        misrouted_long=result.misrouted_long,
        usd_per_year=dollars.of(policy),
    )


def _advice(sweep: Sequence[SweepPoint]) -> ThresholdAdvice | None:
    best = best_point(sweep)
    if best is None:
        return None
    point, own = best
    return ThresholdAdvice(point.threshold_tokens, percent(own), own > 0)
