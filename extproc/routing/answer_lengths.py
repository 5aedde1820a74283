"""Lengths of answers, counted by served model and kind of request.

An answer that reached a limit (``finish_reason: length``) would have been longer. Its
length is therefore a censored observation, and quantiles are computed by Kaplan and
Meier's method (1958). Counts are kept in logarithmic buckets and decay; the counts of
several processes can be added.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from extproc.routing.bounded_table import BoundedTable
from extproc.routing.decayed_counts import DecayedCounts
from extproc.routing.mergeable import DecayedSums, Groups

PER_DOUBLING = 8
"""Number of buckets per doubling of the length; each bucket is 9 % wide."""

BUCKETS = 17 * PER_DOUBLING + 1
"""Number of buckets: lengths up to 131,072 tokens."""

# Derived quantiles are computed again as soon as this share of the counts is new.
_STALE_SHARE = 1 / 128

_ALL = "all"
_KIND = "category."

Counts = npt.NDArray[np.float64]
"""Counts by bucket: row 0 for complete answers, row 1 for truncated ones."""


def no_counts() -> Counts:
    """Return counts that are all zero."""
    return np.zeros((2, BUCKETS))


class Lengths(DecayedCounts):
    """Decayed counts for one kind of request.

    Args:
        keep: see ``DecayedCounts``.
    """

    __slots__ = ()

    def __init__(self, keep: float) -> None:
        super().__init__(2 * BUCKETS, keep)

    @property
    def by_end(self) -> Counts:
        """The counts of complete and of truncated answers."""
        return self.counts.reshape(2, BUCKETS)


class AnswerLengths:
    """Counts over all answers, per model, and per model and kind of request.

    Args:
        memory: number of observations over which a count decays to 1/e.
        models: number of models with separate counts; all others share one set of
            counts.
        kinds: number of kinds of request with separate counts in each model; all others
            share one set of counts.
    """

    def __init__(self, memory: float, models: int, kinds: int) -> None:
        self._keep = math.exp(-1.0 / memory)
        self._memory = memory
        self._newer = 0
        self.derived: dict[tuple[str, str], int | None] = {}
        """Quantiles that the caller derived from the counts, by model and kind. Each
        is deleted before its counts have changed much."""
        self._all = Lengths(self._keep)
        self._models = BoundedTable(partial(_ModelLengths, kinds, self._keep), models)

    def known(self, model: str) -> bool:
        """Return whether an answer was counted for the model or its shared entry."""
        return self._models.get(model) is not None

    def levels(self, model: str, kind: str) -> list[Lengths]:
        """Return the counts that apply, from the coarsest to the finest."""
        levels = [self._all]
        known = self._models.get(model)
        if known is not None:
            levels.append(known.all)
            lengths = known.kinds.get(kind)
            levels += [lengths] if lengths is not None else []
        return levels

    def observe(self, model: str, kind: str, tokens: int, truncated: bool) -> None:
        """Count an answer of ``tokens`` > 0 tokens."""
        known = self._models.touch(model)
        finest = known.kinds.touch(kind)
        place = truncated * BUCKETS + bucket_of(tokens)
        for lengths in (self._all, known.all, finest):
            lengths.add(place)
        self._newer += 1
        if self._newer >= _STALE_SHARE * min(self._all.observations, self._memory):
            self.derived.clear()
            self._newer = 0
        elif _STALE_SHARE * finest.observations < 1.0:
            self.derived.pop((model, kind), None)

    def group_keys(self) -> list[str]:
        """Return ``all``, ``all:MODEL`` and ``category.KIND:MODEL``."""
        keys = [_ALL]
        for name, known in self._models.items():
            keys.append(f"{_ALL}:{name}")
            keys += [f"{_KIND}{kind}:{name}" for kind, _ in known.kinds.items()]
        return keys

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a group's counts, or None if there is no such group."""
        what, of_model, model = key.partition(":")
        lengths: Lengths | None = self._all
        if of_model:
            known = self._models.own(model)
            if known is None:
                return None
            lengths = known.all
            if what != _ALL:
                lengths = known.kinds.own(what.removeprefix(_KIND))
        if lengths is None:
            return None
        return DecayedSums(self._keep, lengths.observations, lengths.counts)

    def restore(self, groups: Groups) -> None:
        """Replace the counts of these groups; leave all others unchanged."""
        for key, group in groups.items():
            lengths = self._place(key)
            if lengths is not None and group.sums.shape == (2 * BUCKETS,):
                lengths.replace(np.maximum(group.sums, 0.0), group.observations)
        self.derived.clear()

    def _place(self, key: str) -> Lengths | None:
        what, of_model, model = key.partition(":")
        if not of_model:
            return self._all
        known = self._models.admit(model)
        if known is None:
            return None
        if what == _ALL:
            return known.all
        return known.kinds.admit(what.removeprefix(_KIND))


class _ModelLengths:
    def __init__(self, kinds: int, keep: float) -> None:
        self.all = Lengths(keep)
        self.kinds = BoundedTable(partial(Lengths, keep), kinds)


def bucket_of(tokens: int) -> int:
    """Return the bucket of a length of 1 token or more."""
    return min(math.ceil(PER_DOUBLING * math.log2(tokens)), BUCKETS - 1)


def upper_tokens(counts: Counts, quantile: float) -> int | None:
    """Return Kaplan and Meier's quantile, or None if truncation hides it."""
    ended, cut = counts
    at_risk = np.cumsum((ended + cut)[::-1])[::-1]
    surviving = np.cumprod(1.0 - ended / np.maximum(at_risk, 1e-12))
    reached = np.flatnonzero(surviving <= 1.0 - quantile + 1e-12).tolist()
    return math.floor(2 ** (reached[0] / PER_DOUBLING)) if reached else None
