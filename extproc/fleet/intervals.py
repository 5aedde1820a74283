"""Confidence intervals of means and quantiles from consecutive batches of a run."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.fleet.histogram import Histogram

#: Student's t at 97.5 % for 1 to 30 degrees of freedom (from any table); 1.96 for more.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
#: Maximum of the estimated correlation. At this maximum, the half-width is multiplied
#: by 3. Above it, ten batches are not informative.
_MOST_CORRELATION = 0.8
#: Minimum number of batches for correcting the bias of the estimated correlation.
_FEWEST_TO_CORRECT = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with half the width of its 95 % confidence interval."""

    value: float
    """NaN if there are too few requests."""
    half_width: float | None = None
    """Half the width of the interval; None if there are too few batches, or if too few
    of them have values above a P99."""

    @property
    def relative(self) -> float:
        """Half-width divided by value; infinite if undefined."""
        if self.half_width is None or not self.value:
            return math.inf
        return abs(self.half_width / self.value)


def share_half_width(
    whole: Histogram, batches: Sequence[Histogram], covered: float
) -> float | None:
    """Return the half-width of a quantile from the share of each batch above it.

    A few congested batches can have all values above it. The quantiles of the batches
    then differ little from each other, but the shares do. The interval of the share is
    converted to quantiles of the whole (Woodruff, JASA 47, 1952), and the larger of
    both sides is the half-width. It is None if the interval of the share reaches 0: the
    quantile may then exceed every measured value.

    Args:
        whole: the values of all batches.
        covered: share of the values below the quantile.
    """
    if len(batches) < 2:
        return None
    mean = whole.count / len(batches)
    excess = [
        (batch.above(whole, covered) - (1 - covered) * batch.count) / mean
        for batch in batches
    ]
    half = batch_half_width(excess)
    if half is None or covered + half >= 1:
        return None
    value = whole.quantile(covered)
    above, below = whole.quantile(covered + half), whole.quantile(covered - half)
    return max(above - value, value - below)


def half_width(values: Sequence[float]) -> float | None:
    """Return the half-width of the 95 % confidence interval of a mean.

    The values must be independent. The half-width is Student's t times the standard
    error. Values that are not finite are excluded.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return None
    freedom = len(finite) - 1
    t = _T975[freedom - 1] if freedom <= len(_T975) else 1.96
    return t * statistics.stdev(finite) / math.sqrt(len(finite))


def batch_half_width(values: Sequence[float]) -> float | None:
    """Return the half-width for means of consecutive batches, which are correlated.

    The half-width is multiplied by ``sqrt((1 + r) / (1 - r))``, the factor for a
    first-order autoregressive series whose neighbors have the correlation r. The
    estimate of r is too small by ``(1 + 4 r) / n`` on average (Marriott and Pope,
    Biometrika 41, 1954), which is corrected if there are ten values or more, and is
    limited to 0 to 0.8.
    """
    finite = [value for value in values if math.isfinite(value)]
    half = half_width(finite)
    if half is None or len(finite) < 3:
        return half
    mean = statistics.fmean(finite)
    deviations = [value - mean for value in finite]
    squares = math.fsum(deviation * deviation for deviation in deviations)
    if not squares:
        return 0.0
    products = math.fsum(a * b for a, b in itertools.pairwise(deviations))
    correlation = products / squares
    if len(finite) >= _FEWEST_TO_CORRECT:
        correlation = (correlation + 1 / len(finite)) / (1 - 4 / len(finite))
    correlation = min(max(correlation, 0.0), _MOST_CORRELATION)
    return half * math.sqrt((1 + correlation) / (1 - correlation))
