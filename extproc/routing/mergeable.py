"""Learned state as plain sums that processes can add up.

Every learner keeps decayed sums: each observation multiplies a group of sums by a
constant below 1 and adds to it. Such sums are linear, so two processes that started
from the same sums and learned separately can be merged exactly, as if one process had
learned after the other: nothing is lost, nothing counts twice, and nothing decays
without an observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from extproc.routing.arrays import Vector

MEMORY = 5000.0
"""Number of a model's observations over which an earlier observation decays to 1/e."""


@dataclass(frozen=True, slots=True, eq=False)
class DecayedSums:
    """Sums that decay together, zero before the first observation."""

    keep: float
    """Factor by which one observation multiplies the sums, in (0, 1]."""
    observations: int
    """Number of observations in this epoch, summed over all processes."""
    sums: Vector
    """The sums, in one dimension; never changed in place."""
    epoch: int = 0
    """Number of restarts of the learner after its model proved wrong."""

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
        """Return whether these and the other sums are of the same observations."""
        return (self.epoch, self.observations) == (other.epoch, other.observations)


Groups = Mapping[str, DecayedSums]
"""A learner's groups, by its own keys (a category, a model)."""


@runtime_checkable
class Mergeable(Protocol):
    """A learner whose state can be copied and merged. Called from the event loop only.

    Copying out or restoring one group takes at most a millisecond, so that a caller
    with thousands of groups can handle requests in between.
    """

    component: str
    """The learner's name and the version of what its sums mean, as in ``ratios.1``."""

    def group_keys(self) -> list[str]:
        """Return the keys of the groups."""

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a group's sums, or None if there is no such group."""

    def restore(self, groups: Groups) -> None:
        """Replace the sums of these groups; leave all others unchanged.

        Groups of an unknown key or a wrong size are ignored.
        """


def snapshot(learner: Mergeable) -> dict[str, DecayedSums]:
    """Return a copy of all sums."""
    groups = ((key, learner.group(key)) for key in learner.group_keys())
    return {key: group for key, group in groups if group is not None}


def merge(base: Groups, ours: Groups, theirs: Groups) -> dict[str, DecayedSums]:
    """Merge what two processes learned since they had the same sums.

    Args:
        base: the sums from which both processes started, as far as known here.
        ours: the sums of this process.
        theirs: the sums of the other process.

    With ``n`` own observations since the base, a group becomes
    ``ours + keep**n * (theirs - base)``: theirs first, then ours. A later epoch
    replaces an earlier one. A group that this process dropped is kept only if the other
    process has updated it since.
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
        # The processes never had common sums, or restarted at the same time.
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
