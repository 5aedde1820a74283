"""Counts of observations by bin that decay with each further observation."""

from __future__ import annotations

import numpy as np

from extproc.routing.arrays import Vector

_MOST_NEWER = 256
"""Maximum number of observations that wait to be added to the counts."""


class DecayedCounts:
    """Counts by bin.

    Observations are added to the counts when the counts are read, many at once, because
    they are read once in a hundred observations.

    Args:
        bins: number of bins.
        keep: factor by which each observation multiplies the earlier counts, in (0, 1].
    """

    __slots__ = ("_counts", "_keep", "_newer", "observations")

    def __init__(self, bins: int, keep: float) -> None:
        self.observations = 0
        """Number of all observations."""
        self._keep = keep
        self._counts: Vector = np.zeros(bins)
        self._newer: list[int] = []
        """Bins of the observations that are not yet in the counts."""

    def add(self, place: int) -> None:
        """Count an observation in the bin with this index."""
        self.observations += 1
        self._newer.append(place)
        if len(self._newer) >= _MOST_NEWER:
            self._add_newer()

    @property
    def counts(self) -> Vector:
        """The decayed count of each bin; the array is never changed."""
        if self._newer:
            self._add_newer()
        return self._counts

    def replace(self, counts: Vector, observations: int) -> None:
        """Replace the counts by those of a group; see ``mergeable.DecayedSums``."""
        self._newer.clear()
        self._counts = counts
        self.observations = observations

    def _add_newer(self) -> None:
        count = len(self._newer)
        faded = self._keep ** np.arange(count - 1.0, -1.0, -1.0)
        added = np.bincount(self._newer, faded, minlength=len(self._counts))
        self._counts = self._keep**count * self._counts + added
        self._newer.clear()
