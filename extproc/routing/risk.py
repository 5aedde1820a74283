"""The configured risk: how far a prompt's bound lies above its point estimate.

    bound = point * exp(q * spread * scale)

``spread`` is the relative standard deviation that the estimator expects for this
prompt. ``scale`` is the root mean square of the errors in its category, in units of the
spread. ``q`` is the quantile of past errors at the configured rate, in units of
``spread * scale``. This is split conformal prediction with locally weighted residuals
(Lei et al. 2018, sections 2.2 and 5.2), with a decayed sample instead of a fixed
sample, and with the rate adjusted by how often the bound was exceeded recently
(adaptive conformal inference, Gibbs and Candès 2021). Errors are logarithms of counted
over estimated tokens. All state is decayed sums, which can be added across processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from extproc.routing.arrays import Vector
from extproc.routing.bounded_table import CATEGORIES, MODELS, BoundedTable
from extproc.routing.decayed_counts import DecayedCounts
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups

_BINS = 320
_BIN = 0.05
_LOWEST = -_BIN * _BINS / 2
_EDGES = _LOWEST + _BIN * np.arange(1, _BINS + 1)

# Errors beyond this many spreads are not noise but a wrong count or a changed model.
# They affect the achieved rate and the category's scale but not the quantile.
# Otherwise, one client in ten could raise the quantile until nothing fits a small pool.
_OUTLIER = 6.0

# Prior weights, each as a number of observations. The prior of one model is the errors
# of all models, the prior of all models together is an assumed distribution, and the
# prior of a category is a scale of 1.
_POOLED_WEIGHT = 50.0
_ASSUMED_WEIGHT = 50.0
_CATEGORY_WEIGHT = 20.0

# When this share of a model's observations is new, its quantile is computed again.
_STALE_SHARE = 1 / 128

# Largest amount that one error adds to its category's sum of squares.
_CLIP = 9.0

# Limits of the adjusted rate, as multiples of the configured rate.
_ADJUSTMENTS = (1 / 8, 4.0)

# Initial number of exceeded bounds. It offsets the larger errors that a new model has
# during its first hundreds of requests. The first quantile is then 3.15, and 0.2 to 1 %
# of the prompts of unknown tokenizers exceed it.
_ASSUMED_ABOVE = 0.6

MAX_FACTOR = 4.0
"""Largest ratio of a bound to its point estimate."""
_MAX_EXPONENT = math.log(MAX_FACTOR)
_OTHER = ""
_BINS_KEY = "bins"
_RATE = "rate"
_SQUARES = "squares."


def _assumed_errors() -> Vector:
    # Use Student's t with 4 degrees of freedom, scaled to unit variance, because the
    # errors of a linear model of text have similar tails.
    t = math.sqrt(2.0) * _EDGES
    below = 0.5 + t * (1 + 2 / (4 + t * t)) / (2 * np.sqrt(4 + t * t))
    counts: Vector = np.diff(below, prepend=0.0)
    counts *= _ASSUMED_WEIGHT / counts.sum()
    return counts


_ASSUMED = _assumed_errors()


@dataclass(slots=True)
class _SquareSum:
    """Decayed sum of a category's squared errors, clipped and in units of spread."""

    total: float = 0.0
    count: float = 0.0
    observations: int = 0


@dataclass(slots=True)
class _ErrorCounts:
    """Decayed sums of the errors of one model or of all models."""

    bins: DecayedCounts
    """The errors except outliers."""
    above: float = 0.0
    """Number of errors in ``bins`` that were above their bound."""
    squares: dict[str, _SquareSum] = field(default_factory=dict)
    observed: float = 0.0
    exceeded: float = 0.0
    observations: int = 0
    quantiles: dict[float, float] = field(default_factory=dict)
    """Quantiles of ``bins`` by rate; cleared when the bins have changed enough."""
    newer: int = 0
    """Number of observations since ``quantiles`` was cleared."""
    latest_factors: dict[str, float] = field(default_factory=dict)
    """The latest factor of each category."""

    def scale(self, category: str) -> float:
        """Return the root mean square of a category's errors, in units of spread."""
        squares = self.squares.get(category)
        if squares is None:
            return 1.0
        total = squares.total + _CATEGORY_WEIGHT
        return math.sqrt(total / (squares.count + _CATEGORY_WEIGHT))


def _no_errors(keep: float) -> _ErrorCounts:
    return _ErrorCounts(DecayedCounts(_BINS, keep))


class NoMargin:
    """No margin: the point estimate is also the bound, as in the papers."""

    rate: float | None = None
    max_factor = 1.0

    names: BoundedTable[Any] | None = None
    """None, since no model is learned separately."""

    def rate_of(self, model: str) -> float | None:
        """Return None, since there is no configured rate."""
        return None

    def factor(self, model: str, category: str, spread: float) -> float:
        """Return 1."""
        return 1.0

    def latest_factor(self, model: str, category: str) -> float:
        """Return 1."""
        return 1.0

    def observe(
        self, model: str, category: str, spread: float, error: float, exceeded: bool
    ) -> None:
        """Learn nothing."""

    def achieved(self, model: str | None = None) -> float | None:
        """Return None, since there is no bound to exceed."""
        return None


class Margin:
    """Factors from point estimates to bounds that are exceeded at a configured rate.

    Not thread-safe.

    Args:
        rate: share of prompts that may exceed their bound, in (0, 0.5).
        rates: rates of single models by name, which replace ``rate``.
        memory: number of a model's observations over which a count decays to 1/e.
        models: number of models with separate counts; all others share one set of
            counts.

    Raises:
        ValueError: a rate outside (0, 0.5).
    """

    component = "margin.1"
    max_factor = MAX_FACTOR

    def __init__(
        self,
        rate: float = 0.01,
        rates: Mapping[str, float] | None = None,
        *,
        memory: float = MEMORY,
        models: int = MODELS,
    ) -> None:
        self.rate = rate
        self._rates = dict(rates or {})
        for each in (rate, *self._rates.values()):
            if not 0.0 < each < 0.5:
                raise ValueError(f"rate: {each}; expected a number between 0 and 0.5")
        self._keep = math.exp(-1.0 / memory)
        self._pooled = _no_errors(self._keep)
        self._models = BoundedTable(partial(_no_errors, self._keep), models)

    def factor(self, model: str, category: str, spread: float) -> float:
        """Return the ratio of the bound to the point estimate, from 1 to 4.

        Args:
            spread: relative standard deviation that the estimator expects, > 0.
        """
        errors = self._models.get(model) or self._pooled
        quantile = self._quantile(errors, self.rate_of(model))
        exponent = quantile * spread * errors.scale(category)
        factor = math.exp(min(exponent, _MAX_EXPONENT))
        errors.latest_factors[category] = factor
        return factor

    @property
    def names(self) -> BoundedTable[Any]:
        """The table of the models that are learned separately."""
        return self._models

    def rate_of(self, model: str) -> float:
        """Return the share of a model's prompts that may exceed their bound."""
        return self._rates.get(model, self.rate)

    def latest_factor(self, model: str, category: str) -> float | None:
        """Return the latest factor of a category, or None if there was none."""
        errors = self._models.get(model) or self._pooled
        return errors.latest_factors.get(category)

    def observe(
        self, model: str, category: str, spread: float, error: float, exceeded: bool
    ) -> None:
        """Learn from one counted prompt.

        Args:
            model: name of a model for which a backend has responded.
            category: the prompt's category, from a closed set.
            spread: as passed to ``factor``.
            error: logarithm of counted over estimated tokens.
            exceeded: whether the count was above the bound.
        """
        for errors in (self._models.touch(model), self._pooled):
            self._count(errors, category, error / spread, exceeded)

    def achieved(self, model: str | None = None) -> float | None:
        """Return the decayed share of prompts above their bound.

        The share is None before the first observation. If ``model`` is None, it covers
        all models.
        """
        errors = self._pooled if model is None else self._models.get(model)
        if errors is None or errors.observed == 0.0:
            return None
        return errors.exceeded / errors.observed

    def _count(
        self, errors: _ErrorCounts, category: str, deviation: float, exceeded: bool
    ) -> None:
        keep = self._keep
        scaled = deviation / errors.scale(category)
        squares = errors.squares.get(category)
        if squares is None:
            if len(errors.squares) >= CATEGORIES:
                category = _OTHER
            squares = errors.squares.setdefault(category, _SquareSum())
        squares.total = keep * squares.total + min(deviation * deviation, _CLIP)
        squares.count = keep * squares.count + 1.0
        squares.observations += 1
        errors.observations += 1
        errors.observed = keep * errors.observed + 1.0
        errors.exceeded = keep * errors.exceeded + exceeded
        errors.newer += 1
        if errors.newer >= _STALE_SHARE * errors.observed:
            errors.quantiles.clear()
            errors.newer = 0
        if abs(scaled) < _OUTLIER:
            errors.bins.add(int((scaled - _LOWEST) / _BIN))
            errors.above = keep * errors.above + exceeded

    def _quantile(self, errors: _ErrorCounts, stated: float) -> float:
        found = errors.quantiles.get(stated)
        if found is None:
            pooled = self._pooled.bins.counts + _ASSUMED
            counts = pooled
            if errors is not self._pooled:
                weight = min(1.0, _POOLED_WEIGHT / pooled.sum())
                counts = errors.bins.counts + weight * pooled
            above = errors.above + _ASSUMED_ABOVE
            rate = adjusted_rate(stated, float(errors.bins.counts.sum()), above)
            found = max(0.0, _upper_quantile(counts, rate))
            errors.quantiles[stated] = found
        return found

    def group_keys(self) -> list[str]:
        """Return ``bins``, ``rate`` and ``squares.CATEGORY`` for all models together.

        The keys for one model are the same, followed by ``:MODEL``.
        """
        models = [("", self._pooled)]
        models += [(f":{name}", errors) for name, errors in self._models.items()]
        return [
            f"{what}{suffix}"
            for suffix, errors in models
            for what in (_BINS_KEY, _RATE, *(f"{_SQUARES}{c}" for c in errors.squares))
        ]

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a group's sums, or None if there is no such group."""
        what, of_model, model = key.partition(":")
        errors = self._models.own(model) if of_model else self._pooled
        if errors is None:
            return None
        if what == _BINS_KEY:
            bins = np.append(errors.bins.counts, errors.above)
            return DecayedSums(self._keep, errors.bins.observations, bins)
        if what == _RATE:
            rate = np.array([errors.observed, errors.exceeded])
            return DecayedSums(self._keep, errors.observations, rate)
        squares = errors.squares.get(what.removeprefix(_SQUARES))
        if squares is None:
            return None
        sums = np.array([squares.total, squares.count])
        return DecayedSums(self._keep, squares.observations, sums)

    def restore(self, groups: Groups) -> None:
        """Replace the sums of these groups; leave all others unchanged."""
        for key, group in groups.items():
            what, of_model, model = key.partition(":")
            errors = self._models.admit(model) if of_model else self._pooled
            if errors is not None:
                _load(errors, what, group)
        for errors in (self._pooled, *self._models.values()):
            errors.quantiles.clear()  # each model's quantiles use all models' errors


def adjusted_rate(stated: float, judged: float, exceeded: float) -> float:
    """Return the rate whose quantile brings the achieved rate to the configured rate.

    Gibbs and Candès 2021, equation 2, unrolled: their step times the sum of
    (stated - exceeded) over the past. Divergence: the sum is decayed, is measured in
    its own standard deviations, and changes the logarithm of the rate.

    Args:
        stated: the share of prompts that may exceed their bound.
        judged: decayed number of observations.
        exceeded: decayed number of observations above their bound.
    """
    expected = stated * judged
    excess = (exceeded - expected) / math.sqrt(expected + 1.0)
    least, most = _ADJUSTMENTS
    return stated * min(max(math.exp(-excess), least), most)


def _upper_quantile(counts: Vector, rate: float) -> float:
    above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(above, rate * above[-1], side="right"))
    return float(_EDGES[_BINS - 1 - min(position, _BINS - 1)])


def _load(errors: _ErrorCounts, what: str, group: DecayedSums) -> None:
    sums = group.sums
    if what == _BINS_KEY and sums.shape == (_BINS + 1,):
        errors.bins.replace(np.maximum(sums[:-1], 0.0), group.observations)
        errors.above = float(sums[-1])
    elif what == _RATE and sums.shape == (2,):
        errors.observed, errors.exceeded = sums.tolist()
        errors.observations = group.observations
    elif (
        what.startswith(_SQUARES)
        and sums.shape == (2,)
        and len(errors.squares) <= CATEGORIES
    ):
        total, count = np.maximum(sums, 0.0).tolist()
        category = what.removeprefix(_SQUARES)
        errors.squares[category] = _SquareSum(total, count, group.observations)
