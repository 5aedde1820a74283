"""The output to reserve for a client that declared a limit: how much it will use.

Agents and SDKs declare limits of 8,192 to 64,000 tokens whatever they ask, and use a
few hundred. A limit at or above a pool's window would send every such request to a
larger pool. Reserved is therefore the quantile of the answers under such limits, at the
stated truncation risk: by served model, octave of the limit and category of the prompt.

The quantile is that of split conformal prediction (Lei et al. 2018, section 2.2): one
answer beyond all others is assumed, so that a limit is believed until ``1 / risk``
answers are known. The rate is adjusted by how often answers exceeded what was reserved,
as that of the prompt's bound is.

Engines differ in what they do with a limit that the window does not leave room for.
vLLM from 0.32 on lowers it; before, it refuses the request, which Envoy then sends to
the largest pool. Where that happens, reserving less than the limit gains nothing: the
limits of that model are believed again, until a reload or a restart.
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
"""On ten of eleven workloads at most 10 % of the requests that fit the window still go
to the long pool, and at most 0.01 % of the answers are cut: few of those that exceed
their reserve fill the window too (``tests/benchmarks/declared_limits.py``)."""

# Octaves of the limit and categories counted apart for each model.
_KINDS = 64
_RATE = "rate:"

# Limits are believed while more than this share of recent requests that relied on less
# was refused; a refusal counts for this much in the running share.
_REFUSED = 0.5
_RECENT = 1 / 8


@dataclass(slots=True)
class _Exceeded:
    """Decayed counts of answers, and of those above their reserve."""

    observed: float = 0.0
    exceeded: float = 0.0
    observations: int = 0


@dataclass(slots=True)
class _Refusals:
    share: float = 0.0


class DeclaredAllowance:
    """Learns how much of a declared output limit answers use.

    Not thread-safe.

    Args:
        risk: share of the answers that may exceed their reserve, in [0, 0.5); 0
            reserves what the client declared.
        risks: those of models that have one of their own, by name.
        memory: observations over which a count fades to 1/e.
        models: models counted apart; the rest share one set of counts.

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
                raise ValueError(f"risk must be at least 0 and below 0.5, got {stated}")
        self._keep = math.exp(-1.0 / memory)
        self._lengths = AnswerLengths(memory, models, _KINDS)
        self._exceeded = BoundedTable(_Exceeded, models)
        self._refusals = BoundedTable(_Refusals, models)

    def risk_of(self, model: str) -> float:
        """Return a model's stated risk."""
        return self._risks.get(model, self.risk)

    def reserve(self, model: str, category: str, limit_tokens: int) -> int:
        """Return the tokens to reserve for the output of one sequence.

        Args:
            model: served model's name.
            category: of the prompt; from a closed set.
            limit_tokens: the client's own limit, which the result does not exceed.
        """
        if not self.risk_of(model) or limit_tokens <= 1 or self._refuses(model):
            return limit_tokens
        kind = _kind(category, limit_tokens)
        key = (model if self._lengths.known(model) else "", kind)
        reserves = self._lengths.derived
        if key not in reserves:
            # Not the answers of other models: a reasoning model's are far longer.
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
        """Learn from one answer of one sequence to a request that declared a limit.

        Args:
            model: a name that a backend has answered to.
            category: of the prompt; from a closed set.
            limit_tokens: the client's own limit.
            completion_tokens: tokens of the answer; 0 and less teach nothing.
            truncated: whether it was cut, by the limit or by the window.
            reserved_tokens: as ``reserve`` returned them.
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
        """Note what an engine did with a limit that its window has no room for."""
        refusals = self._refusals.touch(model)
        refusals.share += _RECENT * (refused - refusals.share)

    def achieved(self, model: str | None = None) -> float | None:
        """Return the recent share of answers above their reserve, None before any.

        Args:
            model: None for all models.
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
        # Coarser counts fill up what the finer ones lack to decide.
        counts = no_counts()
        for lengths in levels:
            total = float(counts.sum())
            lacking = 1.0 / rate - float(lengths.counts.sum())
            weight = min(total, max(lacking, 0.0)) / max(total, 1.0)
            counts = lengths.counts + weight * counts
        counts[0, BUCKETS - 1] += 1.0
        tokens = upper_tokens(counts, 1.0 - rate)
        return None if tokens is None or tokens >= _MOST_TOKENS else tokens

    def group_keys(self) -> list[str]:
        """Those of ``AnswerLengths``, and ``rate:MODEL``."""
        rates = [f"{_RATE}{name}" for name, _ in self._exceeded.items()]
        return [*self._lengths.group_keys(), *rates]

    def group(self, key: str) -> DecayedSums | None:
        """Copy a group's sums out; None if there is none."""
        if not key.startswith(_RATE):
            return self._lengths.group(key)
        counts = self._exceeded.own(key.removeprefix(_RATE))
        if counts is None:
            return None
        sums = np.array([counts.observed, counts.exceeded])
        return DecayedSums(self._keep, counts.observations, sums)

    def restore(self, groups: Groups) -> None:
        """Go on from these sums; others stay."""
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
    """Name the kind of a request: the octave of its limit, and its category."""
    return f"{limit_tokens.bit_length()}.{category}"
