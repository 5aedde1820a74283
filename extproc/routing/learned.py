"""What was learned, as plain sums that processes can add up.

Every learner keeps decayed sums: each observation multiplies a group of sums by a
constant below 1 and adds something to it. Such sums are linear, so that two processes
which started from the same sums and learned apart can be put together exactly, as if
one had learned first and the other after it: nothing is lost, nothing counts twice, and
nothing fades that nobody has learned over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Sums that decay together. Zero before the first observation."""

    keep: float
    """What one observation multiplies the sums by, in (0, 1]."""
    observations: int
    """How often that was done, ever, by whichever process."""
    sums: Vector
    """One dimension; never changed in place."""


Groups = Mapping[str, Group]
"""A learner's groups, by keys of its own (a category, a model)."""


class Learner(Protocol):
    """Something that learns from observations. Called from the event loop only."""

    component: str
    """Its name, and a version of what its sums mean: ``ratios.1``."""

    def snapshot(self) -> dict[str, Group]:
        """Copy the sums out."""

    def restore(self, groups: Groups) -> None:
        """Go on from these sums instead of its own.

        Groups that it has no use for, by key or by size, are left out.
        """


def merge(base: Groups, ours: Groups, theirs: Groups) -> dict[str, Group]:
    """Put together what two processes learned since they had the same sums.

    Args:
        base: what both started from, as far as we know.
        ours: what became of it here.
        theirs: what became of it elsewhere.

    With ``n`` observations of ours since the base, a group becomes
    ``ours + keep**n * (theirs - base)``: theirs first, then ours. A group that we
    dropped stays only if it was learned into elsewhere since.
    """
    merged = dict(ours)
    for key, other in theirs.items():
        mine, common = ours.get(key), base.get(key)
        if mine is None:
            if common is None or common.observations != other.observations:
                merged[key] = other
        elif mine.sums.shape == other.sums.shape:
            merged[key] = _merge_group(common, mine, other)
    return merged


def _merge_group(common: Group | None, mine: Group, other: Group) -> Group:
    start = 0 if common is None else common.observations
    if other.observations == start:
        return mine
    learned = max(0, mine.observations - start)
    elsewhere = other.sums
    if common is not None and common.sums.shape == other.sums.shape:
        elsewhere = other.sums - common.sums
    return Group(
        mine.keep,
        other.observations + learned,
        mine.sums + mine.keep**learned * elsewhere,
    )
