"""The stated risk: how far above its point estimate a prompt's bound lies.

The bound is ``point * exp(q * spread)``. ``spread`` is the relative standard deviation
that the estimator expects of this very prompt, times what its category turned out to
deserve; ``q`` is the quantile, at the stated rate, of the errors seen so far measured
in that unit (split conformal prediction, Lei et al. 2018, section 2.2, with a decayed
sample), corrected by how often the bound was exceeded of late. Errors are logarithms of
counted over estimated tokens. All state is decayed sums, which processes add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from extproc.routing.bounded_table import BoundedTable
from extproc.routing.mergeable import DecayedSums, Groups
from extproc.routing.regressors import Vector

_BINS = 320
_BIN = 0.05
_LOWEST = -_BIN * _BINS / 2
_EDGES = _LOWEST + _BIN * np.arange(1, _BINS + 1)

# Errors beyond this many spreads are not noise: a wrong count, a changed model. They
# count towards the achieved rate and the category's spread, not towards the quantile,
# which one client in ten could otherwise push to where nothing fits a small pool.
_OUTLIER = 6.0

# Observations that what is known beforehand weighs as much as: all models' errors for
# one model's, an assumed distribution for all models', one spread for a category's.
_POOLED_WEIGHT = 50.0
_ASSUMED_WEIGHT = 50.0
_CATEGORY_WEIGHT = 20.0

# What one error may add to its category's sum of squares.
_CLIP = 9.0

# How far below and above the stated rate the quantile's own rate may go to make up for
# errors that did not come as those before: adaptive conformal inference (Gibbs and
# Candès 2021) with the excess counted in its own standard deviations.
_AIMS = (1 / 8, 4.0)

# Exceeded bounds to start with: a model that is still being learned errs more, which
# this many make up for over the first thousand requests.
_ASSUMED_ABOVE = 2.0

MAX_FACTOR = 4.0
"""A bound is at most this many times its point estimate."""
_MAX_EXPONENT = math.log(MAX_FACTOR)
_CATEGORIES = 32
_OTHER = ""
_BINS_KEY = "bins"
_RATE = "rate"
_SQUARES = "squares."


def _assumed_errors() -> Vector:
    # Student's t with 4 degrees of freedom, scaled to unit variance: the errors of a
    # linear model of text have such tails.
    t = math.sqrt(2.0) * _EDGES
    below = 0.5 + t * (1 + 2 / (4 + t * t)) / (2 * np.sqrt(4 + t * t))
    counts: Vector = np.diff(below, prepend=0.0)
    counts *= _ASSUMED_WEIGHT / counts.sum()
    return counts


_ASSUMED = _assumed_errors()


def _zeros() -> Vector:
    return np.zeros(_BINS)


@dataclass(slots=True)
class _Squares:
    """Decayed sum of a category's squared errors, in spreads, clipped."""

    total: float = 0.0
    count: float = 0.0
    observations: int = 0


@dataclass(slots=True)
class _ErrorCounts:
    """Decayed sums of a model's errors, or of all models'."""

    bins: Vector = field(default_factory=_zeros)
    above: float = 0.0
    """Of the errors in ``bins``, those above their bound."""
    binned: int = 0
    """Observations that ``bins`` and ``above`` faded over: not the outliers."""
    squares: dict[str, _Squares] = field(default_factory=dict)
    observed: float = 0.0
    exceeded: float = 0.0
    observations: int = 0
    quantile: float | None = None
    """Of ``bins``; None when they have changed."""

    def scale(self, category: str) -> float:
        """Return the root mean square of a category's errors, in spreads."""
        squares = self.squares.get(category)
        if squares is None:
            return 1.0
        total = squares.total + _CATEGORY_WEIGHT
        return math.sqrt(total / (squares.count + _CATEGORY_WEIGHT))


class Margin:
    """Bounds on prompt tokens, exceeded at a stated rate.

    Not thread-safe.

    Args:
        rate: share of prompts that may exceed their bound, in (0, 0.5).
        memory: observations of a model over which a count fades to 1/e.
        models: models told apart; the rest share one set of counts.

    Raises:
        ValueError: ``rate`` outside (0, 0.5).
    """

    def __init__(
        self, rate: float = 0.01, *, memory: float = 5000.0, models: int = 64
    ) -> None:
        if not 0.0 < rate < 0.5:
            raise ValueError(f"rate must be within 0 and 0.5, got {rate}")
        self.rate = rate
        self._keep = math.exp(-1.0 / memory)
        self._pooled = _ErrorCounts()
        self._models = BoundedTable(_ErrorCounts, models)

    def factor(self, model: str, category: str, spread: float) -> float:
        """Return what to multiply a point estimate by, from 1 to 4.

        Args:
            spread: relative standard deviation that the estimator expects, > 0.
        """
        tally = self._models.get(model) or self._pooled
        exponent = self._quantile(tally) * spread * tally.scale(category)
        return math.exp(min(exponent, _MAX_EXPONENT))

    def observe(
        self, model: str, category: str, spread: float, error: float, exceeded: bool
    ) -> None:
        """Fold one counted prompt in.

        Args:
            model: a name that a backend has answered to.
            category: of the prompt; from a closed set.
            spread: as it was given to ``factor``.
            error: logarithm of counted over estimated tokens.
            exceeded: whether the count was above the bound that was used.
        """
        for tally in (self._models.touch(model), self._pooled):
            self._fold(tally, category, error / spread, exceeded)

    def achieved(self, model: str | None = None) -> float | None:
        """Return the share of prompts above their bound, decayed.

        None before any was observed. ``model`` None is all of them.
        """
        tally = self._pooled if model is None else self._models.get(model)
        if tally is None or tally.observed == 0.0:
            return None
        return tally.exceeded / tally.observed

    def _fold(
        self, tally: _ErrorCounts, category: str, deviation: float, exceeded: bool
    ) -> None:
        keep = self._keep
        scaled = deviation / tally.scale(category)
        squares = tally.squares.get(category)
        if squares is None:
            if len(tally.squares) >= _CATEGORIES:
                category = _OTHER
            squares = tally.squares.setdefault(category, _Squares())
        squares.total = keep * squares.total + min(deviation * deviation, _CLIP)
        squares.count = keep * squares.count + 1.0
        squares.observations += 1
        tally.observations += 1
        tally.observed = keep * tally.observed + 1.0
        tally.exceeded = keep * tally.exceeded + exceeded
        tally.quantile = None
        if abs(scaled) < _OUTLIER:
            tally.bins *= keep
            tally.bins[int((scaled - _LOWEST) / _BIN)] += 1.0
            tally.above = keep * tally.above + exceeded
            tally.binned += 1

    def _quantile(self, tally: _ErrorCounts) -> float:
        if tally.quantile is None:
            pooled = self._pooled.bins + _ASSUMED
            counts = pooled
            if tally is not self._pooled:
                weight = min(1.0, _POOLED_WEIGHT / pooled.sum())
                counts = tally.bins + weight * pooled
            aim = self._aim(float(tally.bins.sum()), tally.above)
            tally.quantile = max(0.0, _upper_quantile(counts, aim))
        return tally.quantile

    def _aim(self, judged: float, above: float) -> float:
        """Return the rate whose quantile brings the achieved rate to the stated one."""
        expected = self.rate * judged
        excess = (above + _ASSUMED_ABOVE - expected) / math.sqrt(expected + 1.0)
        widest, narrowest = _AIMS
        return self.rate * min(max(math.exp(-excess), widest), narrowest)

    def group_keys(self) -> list[str]:
        """``bins``, ``rate`` and ``squares.CATEGORY``, of all models taken together.

        And the same with ``:MODEL`` after it.
        """
        tallies = [("", self._pooled)]
        tallies += [(f":{name}", tally) for name, tally in self._models.items()]
        return [
            f"{what}{suffix}"
            for suffix, tally in tallies
            for what in (_BINS_KEY, _RATE, *(f"{_SQUARES}{c}" for c in tally.squares))
        ]

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's sums out; None if there is none."""
        what, of_model, model = key.partition(":")
        tally = self._models.own(model) if of_model else self._pooled
        if tally is None:
            return None
        if what == _BINS_KEY:
            bins = np.append(tally.bins, tally.above)
            return DecayedSums(self._keep, tally.binned, bins)
        if what == _RATE:
            rate = np.array([tally.observed, tally.exceeded])
            return DecayedSums(self._keep, tally.observations, rate)
        squares = tally.squares.get(what.removeprefix(_SQUARES))
        if squares is None:
            return None
        sums = np.array([squares.total, squares.count])
        return DecayedSums(self._keep, squares.observations, sums)

    def restore(self, groups: Groups) -> None:
        """Go on from these sums; others stay."""
        for key, group in groups.items():
            what, of_model, model = key.partition(":")
            tally = self._models.admit(model) if of_model else self._pooled
            if tally is not None:
                _load(tally, what, group)
        for tally in (self._pooled, *self._models.values()):
            tally.quantile = None  # all models' errors are in each model's


def _upper_quantile(counts: Vector, rate: float) -> float:
    above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(above, rate * above[-1], side="right"))
    return float(_EDGES[_BINS - 1 - min(position, _BINS - 1)])


def _load(tally: _ErrorCounts, what: str, group: DecayedSums) -> None:
    sums = group.sums
    if what == _BINS_KEY and sums.shape == (_BINS + 1,):
        tally.bins, tally.binned = np.maximum(sums[:-1], 0.0), group.observations
        tally.above = float(sums[-1])
    elif what == _RATE and sums.shape == (2,):
        tally.observed, tally.exceeded = sums.tolist()
        tally.observations = group.observations
    elif (
        what.startswith(_SQUARES)
        and sums.shape == (2,)
        and len(tally.squares) <= _CATEGORIES
    ):
        total, count = np.maximum(sums, 0.0).tolist()
        category = what.removeprefix(_SQUARES)
        tally.squares[category] = _Squares(total, count, group.observations)
