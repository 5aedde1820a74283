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
from typing import Protocol, runtime_checkable

import numpy as np

from extproc.routing.arrays import Vector

MEMORY = 5000.0
"""Observations of a model over which what they taught fades to 1/e."""


@dataclass(frozen=True, slots=True, eq=False)
class DecayedSums:
    """Sums that decay together. Zero before the first observation."""

    keep: float
    """What one observation multiplies the sums by, in (0, 1]."""
    observations: int
    """How often that was done in this epoch, by whichever process."""
    sums: Vector
    """One dimension; never changed in place."""
    epoch: int = 0
    """How often the learner started over, having found what it knew to be wrong."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DecayedSums)
            and self.same_as(other)
            and self.keep == other.keep
            and np.array_equal(self.sums, other.sums)
        )

    def __hash__(self) -> int:
        return hash((self.epoch, self.observations))

    def same_as(self, other: DecayedSums) -> bool:
        """Whether nothing was learned between the two, which one came from."""
        return (self.epoch, self.observations) == (other.epoch, other.observations)


Groups = Mapping[str, DecayedSums]
"""A learner's groups, by keys of its own (a category, a model)."""


@runtime_checkable
class Mergeable(Protocol):
    """Something that learns from observations. Called from the event loop only.

    A group at a time costs at most a millisecond, to copy out or to go on from, so
    that a caller with thousands of them to move can let requests pass in between.
    """

    component: str
    """Its name, and a version of what its sums mean: ``ratios.1``."""

    def group_keys(self) -> list[str]:
        """The keys of its groups."""

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's sums out; None if there is none."""

    def restore(self, groups: Groups) -> None:
        """Go on from these sums instead of its own; other groups stay.

        Groups that it has no use for, by key or by size, are left out.
        """


def snapshot(learner: Mergeable) -> dict[str, DecayedSums]:
    """Copy all sums out."""
    groups = ((key, learner.group(key)) for key in learner.group_keys())
    return {key: group for key, group in groups if group is not None}


def merge(base: Groups, ours: Groups, theirs: Groups) -> dict[str, DecayedSums]:
    """Put together what two processes learned since they had the same sums.

    Args:
        base: what both started from, as far as we know.
        ours: what became of it here.
        theirs: what became of it elsewhere.

    With ``n`` own observations since the base, a group becomes
    ``ours + keep**n * (theirs - base)``: theirs first, then ours. A later epoch takes
    the place of an earlier one. A group that we dropped stays only if it was learned
    into elsewhere since.
    """
    merged = dict(ours)
    for key, other in theirs.items():
        mine, common = ours.get(key), base.get(key)
        if mine is None:
            if common is None or not common.same_as(other):
                merged[key] = other
        elif mine.sums.shape == other.sums.shape:
            merged[key] = _merge_group(common, mine, other)
    return merged


def _merge_group(
    common: DecayedSums | None, mine: DecayedSums, other: DecayedSums
) -> DecayedSums:
    if mine.epoch != other.epoch:
        return mine if mine.epoch > other.epoch else other
    if common is None or common.epoch != mine.epoch:
        # Learned apart from the first, or both started over at the same time.
        common = DecayedSums(mine.keep, 0, np.zeros_like(mine.sums), mine.epoch)
    if common.same_as(other):
        return mine
    learned = max(0, mine.observations - common.observations)
    return DecayedSums(
        mine.keep,
        other.observations + learned,
        mine.sums + mine.keep**learned * (other.sums - common.sums),
        mine.epoch,
    )
