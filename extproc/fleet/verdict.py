"""A plan's result in words: GPUs today, with a better setting, and with the split.

Three fleets are compared. Today's fleet is one pool whose ``max_num_seqs`` is the
number of sequences of full length that fit, the papers' baseline. The corrected fleet
is the same pool with vLLM's own ``max_num_seqs``, which needs no router. The split is
the set of pools behind the router. A fleet that misses its SLO or rejects requests is
never part of a saving, since such a fleet is not an alternative at any price.
"""

from collections.abc import Mapping

from extproc.fleet.cost import saving
from extproc.fleet.expense import Unit, amount, gpus, unit, usd_per_hour
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question

BASELINE = "homogeneous-worst-case"
PAGED = "homogeneous-paged"
SPLIT = "split"
#: Relative difference within which fleets count as equal, since sizes have steps of 1
#: to 2 %.
NOISE = 0.03


def is_usable(policy: SizedPolicy) -> bool:
    """Return whether a policy meets its SLO and rejects no avoidable request."""
    return policy.slo_met and not policy.rejected


def fault(policy: SizedPolicy) -> str:
    """Return the reason why a policy is not usable, or an empty text."""
    faults = []
    if not policy.slo_met:
        faults.append("misses its SLO at any sensible size")
    if policy.rejected:
        faults.append(f"rejects {policy.rejected:.2%} of the requests")
    return " and ".join(faults)


def verdict(question: Question, sized: Mapping[str, SizedPolicy]) -> str:
    """Return a few sentences on whether the split saves GPUs or dollars."""
    split, worst, paged = sized[SPLIT], sized[BASELINE], sized[PAGED]
    if not is_usable(split):
        return (
            f"The split {fault(split)}: it is not an alternative as configured, so "
            "no saving is claimed for it. Check the SLO, the threshold and "
            "max_num_batched_tokens first."
        )
    if not is_usable(paged):
        return (
            f"Only the split will do: one pool {fault(paged)}, with any "
            "max_num_seqs, since a long prompt delays the requests behind it. The "
            f"split meets its SLO with {_count(question, split)}."
        )
    parts = (_own(question, split, paged), _mended(question, worst, paged))
    return " ".join(part for part in parts if part)


def _count(question: Question, policy: SizedPolicy) -> str:
    """Return the GPUs of a fleet, with dollars if fleets are compared in dollars."""
    count = f"{gpus(question, policy):,} GPUs"
    usd = usd_per_hour(question, policy)
    if unit(question) is not Unit.DOLLARS or usd is None:
        return count
    return f"{count} at ${usd:,.2f} an hour"


def _own(question: Question, split: SizedPolicy, paged: SizedPolicy) -> str:
    own = saving(amount(question, paged), amount(question, split))
    counts = f"{_count(question, split)} against {_count(question, paged)}"
    less, more = ("fewer", "more")
    if unit(question) is Unit.DOLLARS:
        less, more = ("cheaper", "dearer")
    one_pool = "one pool with the same max_num_seqs"
    if question.pool_hardware:
        one_pool = f"one pool of {question.engine.name}"
    # Two small fleets cannot differ by less than one instance.
    noise = max(NOISE, 1.5 / paged.total)
    if own > noise:
        return f"The split pays: {counts}, {own:.0%} {less} than {one_pool}."
    if own < -noise:
        return f"The split does not pay: {counts}, {-own:.0%} {more} than {one_pool}."
    return f"The split saves nothing beyond noise: {counts} of {one_pool}."


def _mended(question: Question, worst: SizedPolicy, paged: SizedPolicy) -> str:
    """Describe what a larger max_num_seqs saves without a split, or return "".

    If today's setting makes the fleet unusable, describe this instead.
    """
    seqs = worst.policy.tiers[0].limits.max_num_seqs
    mended_seqs = paged.policy.tiers[0].limits.max_num_seqs
    if not is_usable(worst):
        return (
            f"With max_num_seqs {seqs}, sized for the worst case, one pool "
            f"{fault(worst)}; with {mended_seqs} it does not."
        )
    mended = saving(worst.total, paged.total)
    if mended <= max(NOISE, 1.5 / worst.total):
        return ""
    return (
        f"If max_num_seqs is {seqs} today, sized for the worst case, raise it to "
        f"{mended_seqs} first: {gpus(question, worst):,} GPUs become "
        f"{gpus(question, paged):,}, {mended:.0%} fewer, without a router."
    )
