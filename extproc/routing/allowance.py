"""The output allowance: the tokens reserved for a request without an output limit.

It is a quantile of the lengths of answers to such requests, per served model and
category; truncated answers count as censored (``answer_lengths``).

The allowance is for one sequence. vLLM compares ``max_model_len`` with the prompt plus
the output of each sequence separately (``n``, ``best_of`` and beams share the prompt),
so the allowance is not multiplied by the number of sequences. Since ``usage`` is the
sum over a request's sequences, nothing is learned from requests with several sequences.
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

# Weights of prior knowledge, each as a number of observations: the weight of the next
# coarser level's counts, and the weight of the configured default at the coarsest
# level.
_PARENT_WEIGHT = 20.0
_DEFAULT_WEIGHT = 20.0

# Standard deviation of the logarithm of answer lengths, assumed around the default:
# conversation logs show 0.8 to 1.2.
_ASSUMED_SIGMA = 1.0


@dataclass(frozen=True, slots=True)
class AllowanceRule:
    """How to derive an allowance from the lengths of answers.

    Raises:
        ValueError: a value outside its range.
    """

    quantile: float = 0.95
    """Share of answers, in (0, 1), that must be no longer than their allowance."""
    default_tokens: int = 512
    """Allowance before the first observation, at least 1."""
    ceiling_tokens: int = 4096
    """Maximum allowance, at least ``default_tokens``."""
    assumed: Counts = field(init=False, compare=False)
    """Lengths of answers assumed before the first observation."""

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile: {self.quantile}; expected between 0 and 1")
        if not 1 <= self.default_tokens <= self.ceiling_tokens:
            raise ValueError(
                f"default_tokens: {self.default_tokens}; expected 1 to ceiling_tokens"
                f" ({self.ceiling_tokens})"
            )
        assumed = _assume(self.quantile, self.default_tokens)
        object.__setattr__(self, "assumed", assumed)


class OutputAllowance:
    """The allowance for each model and category, learned from observed answers.

    Not thread-safe.

    Args:
        quantile, default_tokens, ceiling_tokens: see ``AllowanceRule``.
        rules: rules of single models; other models use the arguments above.
        memory: number of a model's observations over which a count decays to 1/e.
        models: number of models with separate counts; all others share one set of
            counts.

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
        """Learn from an answer of one sequence to a request without an output limit.

        Args:
            model: name of a model for which a backend has responded.
            category: the prompt's category, from a closed set.
            completion_tokens: length of the answer; ignored if 0 or less.
            truncated: whether the answer was cut off (``finish_reason: length``).
        """
        if completion_tokens <= 0:
            return
        self._lengths.observe(model, category, completion_tokens, truncated)

    def group_keys(self) -> list[str]:
        """Return ``all``, ``all:MODEL`` and ``category.CATEGORY:MODEL``."""
        return self._lengths.group_keys()

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a group's counts, or None if there is no such group."""
        return self._lengths.group(key)

    def restore(self, groups: Groups) -> None:
        """Replace the counts of these groups; leave all others unchanged."""
        self._lengths.restore(groups)


def _blend(counts: Counts, levels: Sequence[Lengths]) -> Counts:
    """Sum the counts of all levels, with a limit on the weight of coarser ones."""
    for lengths in levels:
        weight = min(1.0, _PARENT_WEIGHT / counts.sum())
        counts = lengths.by_end + weight * counts
    return counts


def _assume(quantile: float, default_tokens: int) -> Counts:
    """Return a log-normal distribution of lengths whose quantile is the default."""
    normal = NormalDist()
    step = math.log(2.0) / PER_DOUBLING / _ASSUMED_SIGMA
    top = normal.inv_cdf(quantile)
    buckets = np.arange(BUCKETS) - bucket_of(default_tokens)
    below = [normal.cdf(top + step * float(bucket)) for bucket in buckets]
    counts = no_counts()
    counts[0] = np.diff(below, prepend=0.0)
    counts *= _DEFAULT_WEIGHT / counts.sum()
    return counts
