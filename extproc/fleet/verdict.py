"""A plan's answer in the operator's words: GPUs today, mended, and with the split.

Three fleets are compared. Today's is one pool whose ``max_num_seqs`` is the number of
longest sequences that fit, which is the papers' baseline. Mended, it is the same pool
with vLLM's own ``max_num_seqs``: a setting, no router. The split is the pools that the
router serves. No saving is claimed against, or for, a fleet that misses its promises or
rejects requests: such a fleet is no alternative at any price.
"""

from collections.abc import Mapping

from extproc.fleet.cost import saving
from extproc.fleet.planning import SizedPolicy

BASELINE = "homogeneous-worst-case"
PAGED = "homogeneous-paged"
SPLIT = "split"
#: Fleets this close are the same: sizes are searched to 1 % and grown by 2 %.
NOISE = 0.03


def is_usable(policy: SizedPolicy) -> bool:
    """Whether a policy keeps its promises and rejects nothing that another takes."""
    return policy.slo_met and not policy.rejected


def fault(policy: SizedPolicy) -> str:
    """Why a policy is not usable; empty if it is."""
    faults = []
    if not policy.slo_met:
        faults.append("misses its promises at any sensible size")
    if policy.rejected:
        faults.append(f"rejects {policy.rejected:.2%} of the requests")
    return " and ".join(faults)


def verdict(sized: Mapping[str, SizedPolicy], gpus_per_instance: int) -> str:
    """Whether the split pays, in a few sentences."""
    split, worst, paged = sized[SPLIT], sized[BASELINE], sized[PAGED]
    gpus = gpus_per_instance
    if not is_usable(split):
        return (
            f"The split {fault(split)}: it is no alternative as it stands, and no "
            "saving is claimed for it. Look at the promises, the threshold and "
            "max_num_batched_tokens first."
        )
    if not is_usable(paged):
        return (
            f"Only the split will do: one pool {fault(paged)}, whatever its "
            "max_num_seqs, since a long prompt holds up the requests behind it. The "
            f"split keeps its promises with {gpus * split.total:,} GPUs."
        )
    return " ".join(
        part for part in (_own(split, paged, gpus), _mended(worst, paged, gpus)) if part
    )


def _own(split: SizedPolicy, paged: SizedPolicy, gpus: int) -> str:
    own = saving(paged.total, split.total)
    counts = f"{gpus * split.total:,} GPUs against {gpus * paged.total:,}"
    # Two small fleets cannot differ by less than one instance.
    noise = max(NOISE, 1.5 / paged.total)
    if own > noise:
        return (
            f"The split pays: {counts}, {own:.0%} fewer than one pool with the same "
            "max_num_seqs."
        )
    if own < -noise:
        return (
            f"The split does not pay: {counts}, {-own:.0%} more than one pool with "
            "the same max_num_seqs."
        )
    return (
        f"The split saves nothing beyond noise: {counts} of one pool "
        "with the same max_num_seqs."
    )


def _mended(worst: SizedPolicy, paged: SizedPolicy, gpus: int) -> str:
    """What the setting alone saves, if today's fleet can be run at all."""
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
        f"{mended_seqs} first: {gpus * worst.total:,} GPUs become "
        f"{gpus * paged.total:,}, {mended:.0%} fewer, and no router is needed for that."
    )
