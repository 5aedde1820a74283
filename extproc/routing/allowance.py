"""The output allowance: how many tokens to reserve where a client set no limit.

A quantile of the completion lengths that such clients got, per served model and
category. A completion that ran into a limit (``finish_reason: length``) was cut: it
says that the answer would have been at least that long, so lengths are censored and
the quantile is Kaplan and Meier's (1958). Lengths are counted in logarithmic buckets
that fade; processes add them up.

The allowance is of one sequence. vLLM holds ``max_model_len`` against the prompt and
each sequence's output by itself (``n``, ``best_of`` and beams share the prompt), so it
is not multiplied; and since ``usage`` sums the sequences of a request, those with
several teach nothing about one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from extproc.routing.bounded_table import CATEGORIES, MODELS, BoundedTable
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups

# Buckets of an eighth of a doubling, 9 % wide, up to 131,072 tokens.
_PER_DOUBLING = 8
_BUCKETS = 17 * _PER_DOUBLING + 1

# Observations that what is known beforehand weighs as much as: of the level above,
# and of the configured default at the top.
_PARENT_WEIGHT = 20.0
_DEFAULT_WEIGHT = 20.0

# Spread of the lengths assumed around the default, as a standard deviation of their
# logarithm: conversation logs show 0.8 to 1.2.
_ASSUMED_SIGMA = 1.0

_CATEGORY = "category."

_Counts = npt.NDArray[np.float64]


def _no_counts() -> _Counts:
    return np.zeros((2, _BUCKETS))


@dataclass(slots=True)
class _Lengths:
    """Decayed counts by bucket: row 0 of answers that ended, row 1 of cut ones."""

    counts: _Counts = field(default_factory=_no_counts)
    observations: int = 0


@dataclass(slots=True)
class _ModelLengths:
    all: _Lengths = field(default_factory=_Lengths)
    categories: BoundedTable[_Lengths] = field(
        default_factory=lambda: BoundedTable(_Lengths, CATEGORIES)
    )


class OutputAllowance:
    """Learns how long answers get where the client set no limit.

    Not thread-safe.

    Args:
        quantile: share of answers that must fit their allowance, in (0, 1).
        default_tokens: the allowance before anything is known, >= 1.
        ceiling_tokens: never allow more than this, >= ``default_tokens``.
        memory: observations of a model over which a count fades to 1/e.
        models: models told apart; the rest share one set of counts.

    Raises:
        ValueError: an argument outside its range.
    """

    component = "allowance.1"

    def __init__(
        self,
        quantile: float = 0.95,
        default_tokens: int = 512,
        ceiling_tokens: int = 4096,
        *,
        memory: float = MEMORY,
        models: int = MODELS,
    ) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must be within 0 and 1, got {quantile}")
        if not 1 <= default_tokens <= ceiling_tokens:
            raise ValueError(
                f"default_tokens must be within 1 and ceiling_tokens"
                f" {ceiling_tokens}, got {default_tokens}"
            )
        self.quantile = quantile
        self.default_tokens = default_tokens
        self.ceiling_tokens = ceiling_tokens
        self._keep = math.exp(-1.0 / memory)
        self._assumed = _assume(quantile, default_tokens)
        self._all = _Lengths()
        self._models = BoundedTable(_ModelLengths, models)
        self._allowed: dict[tuple[str, str], int] = {}

    def allow(self, model: str, category: str) -> int:
        """Return the tokens to reserve for the output of one sequence."""
        known = self._models.get(model)
        if known is None and not self._all.observations:
            return self.default_tokens
        key = (model if known is not None else "", category)
        allowed = self._allowed.get(key)
        if allowed is None:
            levels = [self._all]
            if known is not None:
                levels.append(known.all)
                lengths = known.categories.get(category)
                levels += [lengths] if lengths is not None else []
            tokens = _upper_tokens(self._blend(levels), self.quantile)
            allowed = min(tokens or self.ceiling_tokens, self.ceiling_tokens)
            self._allowed[key] = allowed
        return allowed

    def observe(
        self, model: str, category: str, completion_tokens: int, truncated: bool
    ) -> None:
        """Fold in one answer to a request without a limit, of one sequence.

        Args:
            model: a name that a backend has answered to.
            category: of the prompt; from a closed set.
            completion_tokens: tokens of the answer; 0 and less teach nothing.
            truncated: whether it was cut (``finish_reason: length``).
        """
        if completion_tokens <= 0:
            return
        known = self._models.touch(model)
        bucket = _bucket(completion_tokens)
        for lengths in (self._all, known.all, known.categories.touch(category)):
            lengths.counts *= self._keep
            lengths.counts[int(truncated), bucket] += 1.0
            lengths.observations += 1
        self._allowed.clear()

    def _blend(self, levels: Sequence[_Lengths]) -> _Counts:
        """Add the levels up, each coarser one weighing at most so much."""
        counts = self._assumed
        for lengths in levels:
            weight = min(1.0, _PARENT_WEIGHT / counts.sum())
            counts = lengths.counts + weight * counts
        return counts

    def group_keys(self) -> list[str]:
        """``all``, ``all:MODEL`` and ``category.CATEGORY:MODEL``."""
        keys = ["all"]
        for name, known in self._models.items():
            keys.append(f"all:{name}")
            keys += [f"{_CATEGORY}{c}:{name}" for c, _ in known.categories.items()]
        return keys

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's counts out; None if there is none."""
        what, of_model, model = key.partition(":")
        lengths: _Lengths | None = self._all
        if of_model:
            known = self._models.own(model)
            if known is None:
                return None
            lengths = known.all
            if what != "all":
                lengths = known.categories.own(what.removeprefix(_CATEGORY))
        if lengths is None:
            return None
        return DecayedSums(self._keep, lengths.observations, lengths.counts.flatten())

    def restore(self, groups: Groups) -> None:
        """Go on from these counts; others stay."""
        self._allowed.clear()
        for key, group in groups.items():
            lengths = self._place(key)
            if lengths is not None and group.sums.shape == (2 * _BUCKETS,):
                lengths.counts = np.maximum(group.sums, 0.0).reshape(2, _BUCKETS)
                lengths.observations = group.observations

    def _place(self, key: str) -> _Lengths | None:
        what, of_model, model = key.partition(":")
        if not of_model:
            return self._all
        known = self._models.admit(model)
        if known is None:
            return None
        if what == "all":
            return known.all
        return known.categories.admit(what.removeprefix(_CATEGORY))


def _bucket(tokens: int) -> int:
    return min(math.ceil(_PER_DOUBLING * math.log2(tokens)), _BUCKETS - 1)


def _assume(quantile: float, default_tokens: int) -> _Counts:
    """Spread lengths log-normally so that their quantile is the default."""
    normal = NormalDist()
    step = math.log(2.0) / _PER_DOUBLING / _ASSUMED_SIGMA
    top = normal.inv_cdf(quantile)
    buckets = np.arange(_BUCKETS) - _bucket(default_tokens)
    below = [normal.cdf(top + step * float(bucket)) for bucket in buckets]
    counts = _no_counts()
    counts[0] = np.diff(below, prepend=0.0)
    counts *= _DEFAULT_WEIGHT / counts.sum()
    return counts


def _upper_tokens(counts: _Counts, quantile: float) -> int | None:
    """Return Kaplan and Meier's quantile, or None where cut answers hide it."""
    ended, cut = counts
    at_risk = np.cumsum((ended + cut)[::-1])[::-1]
    surviving = np.cumprod(1.0 - ended / np.maximum(at_risk, 1e-12))
    reached = np.flatnonzero(surviving <= 1.0 - quantile + 1e-12).tolist()
    return math.floor(2 ** (reached[0] / _PER_DOUBLING)) if reached else None
