"""Scores of the decisions on a log: errors and misroutes, in total and by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from extproc.routing.decision import Decision, Outcome
from extproc.routing.misroute import needed_tokens

DEFAULT_THRESHOLDS = (2048, 4096, 8192)


@dataclass(slots=True)
class _Errors:
    requests: int = 0
    absolute: float = 0.0
    signed: float = 0.0
    under: int = 0

    def add(self, decision: Decision, prompt_tokens: int) -> None:
        error = (decision.prompt_tokens - prompt_tokens) / prompt_tokens
        self.requests += 1
        self.absolute += abs(error)
        self.signed += error
        self.under += prompt_tokens > decision.bound_tokens

    def report(self) -> dict[str, Any]:
        n = max(1, self.requests)
        return {
            "requests": self.requests,
            "mape_pct": round(100 * self.absolute / n, 2),
            "bias_pct": round(100 * self.signed / n, 2),
            "under_estimate_rate": round(self.under / n, 4),
        }


@dataclass(slots=True)
class _Misroutes:
    under: int = 0
    over: int = 0

    def add(self, needed: int, budgeted: int, threshold: int) -> None:
        self.under += needed > threshold >= budgeted
        self.over += needed <= threshold < budgeted

    def report(self, n: int) -> dict[str, float]:
        n = max(1, n)
        return {
            "under": round(100 * self.under / n, 2),
            "over": round(100 * self.over / n, 2),
        }


@dataclass(slots=True)
class Evaluation:
    """Scores of decisions by the needs of their requests (``misroute.needed_tokens``).

    ``under`` is the share of requests whose budget was within a threshold although they
    needed more; ``over`` is the share of requests whose budget exceeded the threshold
    although their need was within it.
    """

    thresholds: Sequence[int] = DEFAULT_THRESHOLDS
    _all: _Errors = field(default_factory=_Errors)
    _by_category: dict[str, _Errors] = field(default_factory=dict)
    _routed: list[_Misroutes] = field(init=False)
    _point: list[_Misroutes] = field(init=False)

    def __post_init__(self) -> None:
        self._routed = [_Misroutes() for _ in self.thresholds]
        self._point = [_Misroutes() for _ in self.thresholds]

    def add(self, decision: Decision, outcome: Outcome) -> None:
        """Score one decision, made before learning from its outcome.

        Decisions with an unknown need (failed open, or without counts) are not scored.
        """
        needed = needed_tokens(decision, outcome)
        if needed is None or not outcome.prompt_tokens:
            return
        prompt_tokens = outcome.prompt_tokens
        output = needed - prompt_tokens
        self._all.add(decision, prompt_tokens)
        by_category = self._by_category.setdefault(decision.category, _Errors())
        by_category.add(decision, prompt_tokens)
        for threshold, routed, point in zip(
            self.thresholds, self._routed, self._point, strict=True
        ):
            routed.add(needed, decision.bound_budget_tokens, threshold)
            point.add(needed, decision.prompt_tokens + output, threshold)

    def report(self) -> dict[str, Any]:
        """Return the scores as plain values; thresholds are string keys."""
        scored = self._all.report()
        n = scored.pop("requests")
        keyed = [str(threshold) for threshold in self.thresholds]
        return {
            "scored": n,
            **scored,
            "misroute_pct": {
                k: m.report(n) for k, m in zip(keyed, self._routed, strict=True)
            },
            "misroute_point_pct": {
                k: m.report(n) for k, m in zip(keyed, self._point, strict=True)
            },
            "by_category": {
                category: errors.report()
                for category, errors in sorted(self._by_category.items())
            },
        }
