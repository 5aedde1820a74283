"""The output allowance: the tokens to reserve if a client set no limit.

A quantile of the completion lengths that such clients got, per served model and
category; cut answers count as censored (``answer_lengths``).

The allowance is of one sequence. vLLM holds ``max_model_len`` against the prompt and
each sequence's output by itself (``n``, ``best_of`` and beams share the prompt), so it
is not multiplied; and since ``usage`` sums the sequences of a request, those with
several teach nothing about one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from extproc.routing.answer_lengths import (
    BUCKETS,
    PER_DOUBLING,
    AnswerLengths,
    Counts,
    Lengths,
    bucket_of,
    no_counts,
    upper_tokens,
)
from extproc.routing.bounded_table import CATEGORIES, MODELS
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups

# Weights of prior knowledge, in observations: of the level above, and of the configured
# default at the top.
_PARENT_WEIGHT = 20.0
_DEFAULT_WEIGHT = 20.0

# Spread of the lengths assumed around the default, as a standard deviation of their
# logarithm: conversation logs show 0.8 to 1.2.
_ASSUMED_SIGMA = 1.0


@dataclass(frozen=True, slots=True)
class AllowanceRule:
    """How much output to allow.

    Raises:
        ValueError: a value outside its range.
    """

    quantile: float = 0.95
    """Share of answers that must fit their allowance, in (0, 1)."""
    default_tokens: int = 512
    """The allowance before anything is known, >= 1."""
    ceiling_tokens: int = 4096
    """Never allow more than this, >= ``default_tokens``."""
    assumed: Counts = field(init=False, compare=False)
    """Lengths to start with."""

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile must be within 0 and 1, got {self.quantile}")
        if not 1 <= self.default_tokens <= self.ceiling_tokens:
            raise ValueError(
                f"default_tokens must be within 1 and ceiling_tokens"
                f" {self.ceiling_tokens}, got {self.default_tokens}"
            )
        assumed = _assume(self.quantile, self.default_tokens)
        object.__setattr__(self, "assumed", assumed)


class OutputAllowance:
    """Learns how long answers get where the client set no limit.

    Not thread-safe.

    Args:
        quantile, default_tokens, ceiling_tokens: see ``AllowanceRule``.
        rules: for models that have a rule of their own.
        memory: observations of a model over which a count fades to 1/e.
        models: models counted apart; the rest share one set of counts.

    Raises:
        ValueError: an argument outside its range.
    """

    component = "allowance.1"

    def __init__(
        self,
        quantile: float = 0.95,
        default_tokens: int = 512,
        ceiling_tokens: int = 4096,
        rules: Mapping[str, AllowanceRule] | None = None,
        *,
        memory: float = MEMORY,
        models: int = MODELS,
    ) -> None:
        self._rule = AllowanceRule(quantile, default_tokens, ceiling_tokens)
        self._rules = dict(rules or {})
        self._lengths = AnswerLengths(memory, models, CATEGORIES)

    def allow(self, model: str, category: str) -> int:
        """Return the tokens to reserve for the output of one sequence."""
        rule = self._rules.get(model, self._rule)
        levels = self._lengths.levels(model, category)
        if not any(lengths.observations for lengths in levels):
            return rule.default_tokens
        apart = self._lengths.known(model) or rule is not self._rule
        key = (model if apart else "", category)
        allowed = self._lengths.derived.get(key)
        if allowed is None:
            tokens = upper_tokens(_blend(rule.assumed, levels), rule.quantile)
            allowed = min(tokens or rule.ceiling_tokens, rule.ceiling_tokens)
            self._lengths.derived[key] = allowed
        return allowed

    def observe(
        self, model: str, category: str, completion_tokens: int, truncated: bool
    ) -> None:
        """Learn from one answer to a request without a limit, of one sequence.

        Args:
            model: a name that a backend has answered to.
            category: of the prompt; from a closed set.
            completion_tokens: tokens of the answer; 0 and less teach nothing.
            truncated: whether it was cut (``finish_reason: length``).
        """
        if completion_tokens <= 0:
            return
        self._lengths.observe(model, category, completion_tokens, truncated)

    def group_keys(self) -> list[str]:
        """``all``, ``all:MODEL`` and ``category.CATEGORY:MODEL``."""
        return self._lengths.group_keys()

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's counts out; None if there is none."""
        return self._lengths.group(key)

    def restore(self, groups: Groups) -> None:
        """Go on from these counts; others stay."""
        self._lengths.restore(groups)


def _blend(counts: Counts, levels: Sequence[Lengths]) -> Counts:
    """Add the levels up, each coarser one weighing at most so much."""
    for lengths in levels:
        weight = min(1.0, _PARENT_WEIGHT / counts.sum())
        counts = lengths.counts + weight * counts
    return counts


def _assume(quantile: float, default_tokens: int) -> Counts:
    """Spread lengths log-normally so that their quantile is the default."""
    normal = NormalDist()
    step = math.log(2.0) / PER_DOUBLING / _ASSUMED_SIGMA
    top = normal.inv_cdf(quantile)
    buckets = np.arange(BUCKETS) - bucket_of(default_tokens)
    below = [normal.cdf(top + step * float(bucket)) for bucket in buckets]
    counts = no_counts()
    counts[0] = np.diff(below, prepend=0.0)
    counts *= _DEFAULT_WEIGHT / counts.sum()
    return counts
