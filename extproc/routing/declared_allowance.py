"""The output reserved if a client declares a limit: as much as answers really use.

Agents and SDKs declare limits of 8,192 to 64,000 tokens for every request, and use a
few hundred. A limit at or above a pool's window would send every such request to a
larger pool. So the router reserves a quantile of the lengths of answers under such
limits, chosen by the configured truncation risk. Lengths are counted by served model,
octave of the limit and prompt category.

The quantile is that of split conformal prediction (Lei et al. 2018, section 2.2): one
answer longer than all others is assumed, so that the whole limit is reserved until
``1 / risk`` answers are known. Like the rate of the bound on prompts, the rate is
adjusted by how often answers exceeded their reserve.

Engines differ in their handling of a limit that exceeds the room in the window. From
version 0.32 on, vLLM lowers the limit; earlier versions refuse the request, and Envoy
retries it on the largest pool. If requests are refused, reserving less than the limit
gains nothing, so the whole limit is reserved for that model until a reload or a
restart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from extproc.routing.answer_lengths import (
    BUCKETS,
    PER_DOUBLING,
    AnswerLengths,
    Lengths,
    no_counts,
    upper_tokens,
)
from extproc.routing.bounded_table import MODELS, BoundedTable
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups
from extproc.routing.risk import adjusted_rate

TRUNCATION_RISK = 0.005
"""Default risk. On ten of eleven workloads, at most 10 % of the requests that fit the
window still go to the long pool, and at most 0.01 % of the answers are cut, because few
of the answers that exceed their reserve also fill the window
(``tests/benchmarks/declared_limits.py``)."""

# Maximum number of pairs (an octave of the limit and a category) that are counted
# separately for each model.
_KINDS = 64
_RATE = "rate:"

# Requests reserve their whole limit while more than the share ``_REFUSED`` of the
# recent requests with a lower reserve were refused. ``_RECENT`` is the weight of the
# newest request in that share.
_REFUSED = 0.5
_RECENT = 1 / 8


@dataclass(slots=True)
class _Exceeded:
    """Decayed counts of all answers, and of answers longer than their reserve."""

    observed: float = 0.0
    exceeded: float = 0.0
    observations: int = 0


@dataclass(slots=True)
class _Refusals:
    share: float = 0.0


class DeclaredAllowance:
    """The reserve for declared output limits, learned from the lengths of answers.

    Not thread-safe.

    Args:
        risk: share of the answers that may exceed their reserve, in [0, 0.5); 0
            reserves the whole limit.
        risks: risks of single models by name, which replace ``risk``.
        memory: number of observations over which a count decays to 1/e.
        models: number of models with separate counts; all others share one set of
            counts.

    Raises:
        ValueError: a risk outside [0, 0.5).
    """

    component = "declared.1"

    def __init__(
        self,
        risk: float = TRUNCATION_RISK,
        *,
        risks: Mapping[str, float] | None = None,
        memory: float = MEMORY,
        models: int = MODELS,
    ) -> None:
        self.risk = risk
        self._risks = dict(risks or {})
        for stated in (risk, *self._risks.values()):
            if not 0.0 <= stated < 0.5:
                raise ValueError(f"risk: {stated}; expected at least 0 and below 0.5")
        self._keep = math.exp(-1.0 / memory)
        self._lengths = AnswerLengths(memory, models, _KINDS)
        self._exceeded = BoundedTable(_Exceeded, models)
        self._refusals = BoundedTable(_Refusals, models)

    def risk_of(self, model: str) -> float:
        """Return a model's configured risk."""
        return self._risks.get(model, self.risk)

    def reserve(self, model: str, category: str, limit_tokens: int) -> int:
        """Return the tokens to reserve for the output of one sequence.

        Args:
            model: name of the served model.
            category: the prompt's category, from a closed set.
            limit_tokens: the client's own limit, which the result never exceeds.
        """
        if not self.risk_of(model) or limit_tokens <= 1 or self._refuses(model):
            return limit_tokens
        kind = _kind(category, limit_tokens)
        key = (model if self._lengths.known(model) else "", kind)
        reserves = self._lengths.derived
        if key not in reserves:
            # Skip the counts over all models: a reasoning model's answers are longer.
            levels = self._lengths.levels(model, kind)[1:]
            reserves[key] = self._quantile(model, levels)
        reserved = reserves[key]
        return limit_tokens if reserved is None else min(reserved, limit_tokens)

    def observe(
        self,
        model: str,
        category: str,
        limit_tokens: int,
        completion_tokens: int,
        *,
        truncated: bool,
        reserved_tokens: int,
    ) -> None:
        """Learn from an answer of one sequence under a declared limit.

        Args:
            model: name of a model for which a backend has responded.
            category: the prompt's category, from a closed set.
            limit_tokens: the client's own limit.
            completion_tokens: length of the answer; ignored if 0 or less.
            truncated: whether the limit or the window cut the answer off.
            reserved_tokens: the result of ``reserve``.
        """
        if not self.risk_of(model) or completion_tokens <= 0:
            return
        kind = _kind(category, limit_tokens)
        self._lengths.observe(model, kind, completion_tokens, truncated)
        if reserved_tokens < limit_tokens:
            counts, keep = self._exceeded.touch(model), self._keep
            counts.observed = keep * counts.observed + 1.0
            exceeded = completion_tokens > reserved_tokens
            counts.exceeded = keep * counts.exceeded + exceeded
            counts.observations += 1

    def relied(self, model: str, *, refused: bool) -> None:
        """Record whether an engine refused a limit above the room in the window."""
        refusals = self._refusals.touch(model)
        refusals.share += _RECENT * (refused - refusals.share)

    def achieved(self, model: str | None = None) -> float | None:
        """Return the recent share of answers above their reserve, or None if unknown.

        Args:
            model: name of a model, or None for all models.
        """
        each = list(self._exceeded.values())
        if model is not None:
            known = self._exceeded.get(model)
            each = [] if known is None else [known]
        observed = sum(counts.observed for counts in each)
        return sum(counts.exceeded for counts in each) / observed if observed else None

    def _refuses(self, model: str) -> bool:
        refusals = self._refusals.get(model)
        return refusals is not None and refusals.share > _REFUSED

    def _quantile(self, model: str, levels: list[Lengths]) -> int | None:
        seen = self._exceeded.get(model) or _Exceeded()
        rate = adjusted_rate(self.risk_of(model), seen.observed, seen.exceeded)
        # Add coarser counts until there are enough to decide.
        counts = no_counts()
        for lengths in levels:
            total = float(counts.sum())
            lacking = 1.0 / rate - float(lengths.by_end.sum())
            weight = min(total, max(lacking, 0.0)) / max(total, 1.0)
            counts = lengths.by_end + weight * counts
        counts[0, BUCKETS - 1] += 1.0
        tokens = upper_tokens(counts, 1.0 - rate)
        return None if tokens is None or tokens >= _MOST_TOKENS else tokens

    def group_keys(self) -> list[str]:
        """Return the keys of ``AnswerLengths``, and ``rate:MODEL``."""
        rates = [f"{_RATE}{name}" for name, _ in self._exceeded.items()]
        return [*self._lengths.group_keys(), *rates]

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a group's sums, or None if there is no such group."""
        if not key.startswith(_RATE):
            return self._lengths.group(key)
        counts = self._exceeded.own(key.removeprefix(_RATE))
        if counts is None:
            return None
        sums = np.array([counts.observed, counts.exceeded])
        return DecayedSums(self._keep, counts.observations, sums)

    def restore(self, groups: Groups) -> None:
        """Replace the sums of these groups; leave all others unchanged."""
        self._lengths.derived.clear()
        for key, group in groups.items():
            if not key.startswith(_RATE):
                self._lengths.restore({key: group})
                continue
            counts = self._exceeded.admit(key.removeprefix(_RATE))
            if counts is not None and group.sums.shape == (2,):
                counts.observed, counts.exceeded = np.maximum(group.sums, 0.0).tolist()
                counts.observations = group.observations


_MOST_TOKENS = math.floor(2 ** ((BUCKETS - 1) / PER_DOUBLING))


def _kind(category: str, limit_tokens: int) -> str:
    """Return the kind of a request: the octave of its limit and its category."""
    return f"{limit_tokens.bit_length()}.{category}"
