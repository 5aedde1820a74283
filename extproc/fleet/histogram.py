"""Quantiles of a stream in bounded memory; histograms of several runs can be merged.

Buckets grow by a constant factor, so every quantile is within half a bucket of an
observed value: the relative error is at most 0.5 %. The idea is that of DDSketch
(Masson et al., VLDB 2019). Values below ``SMALLEST_S`` share the first bucket.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

_GROWTH = 1.01
_LOG_GROWTH = math.log(_GROWTH)
SMALLEST_S = 1e-6
_BUCKETS = math.ceil(math.log(1e7 / SMALLEST_S) / _LOG_GROWTH)


class Histogram:
    """Counts of durations between a microsecond and 10^7 seconds."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self.count = 0
        self.total = 0.0

    def add(self, values: Iterable[float]) -> None:
        """Count durations in seconds; callers must not pass NaN."""
        seconds = np.fromiter(values, float)
        if not len(seconds):
            return
        self.count += len(seconds)
        self.total += float(seconds.sum())
        positions = np.log(np.maximum(seconds, SMALLEST_S) / SMALLEST_S) / _LOG_GROWTH
        buckets = np.minimum(positions.astype(int), _BUCKETS - 1)
        self._counts += np.bincount(buckets, minlength=_BUCKETS)

    def merge(self, other: "Histogram") -> None:
        """Add another histogram's counts."""
        self._counts += other._counts
        self.count += other.count
        self.total += other.total

    @property
    def mean(self) -> float:
        """Exact mean; NaN without values."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Return the value that a ``share`` of all values does not exceed, or NaN."""
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(share * self.count))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        if bucket == 0:
            return 0.0
        return float(SMALLEST_S * _GROWTH ** (bucket + 0.5))

    def above(self, whole: "Histogram", share: float) -> float:
        """Return the number of values above the ``share`` quantile of ``whole``.

        The quantile's own bucket counts in the same proportion as in ``whole``, so the
        parts of ``whole`` add up to ``1 - share`` of its values.
        """
        if not whole.count:
            return 0.0
        sums = np.cumsum(whole._counts)
        rank = share * whole.count
        bucket = int(np.searchsorted(sums, max(1, math.ceil(rank))))
        above = float(self._counts[bucket + 1 :].sum())
        divided = (float(sums[bucket]) - rank) / float(whole._counts[bucket])
        return above + divided * float(self._counts[bucket])

    def cumulative(self) -> Iterator[tuple[float, float]]:
        """Yield each non-empty bucket's upper end, and the share of values below it."""
        seen = 0
        for bucket in np.flatnonzero(self._counts):
            seen += int(self._counts[bucket])
            yield SMALLEST_S * _GROWTH ** (int(bucket) + 1), seen / self.count
