"""Threshold advice from the requests that pass: for the page and the metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from extproc.exchange.events import Observation
from extproc.routing.advice import (
    Advice,
    BudgetCounts,
    advise,
    candidate_thresholds,
)
from extproc.routing.policy import Policy
from extproc.routing.router import Decision, Lesson


class Advisor:
    """Watches budgets and needs; advises when asked.

    Args:
        policy: whose smallest pool's threshold is in question.
    """

    def __init__(self, policy: Policy) -> None:
        self.reconfigure(policy)

    def reconfigure(self, policy: Policy) -> None:
        """Begin anew if the pools' limits are others."""
        smallest, largest = policy.pools[0], policy.pools[-1]
        limits = smallest.threshold_tokens, largest.max_model_len
        if getattr(self, "_limits", None) == limits:
            return
        self._limits = limits
        # One pool has nothing to split; its counts are shown all the same.
        self._split = len(policy.pools) > 1
        candidates = candidate_thresholds(largest.max_model_len)
        self._counts = BudgetCounts(sorted({*candidates, smallest.threshold_tokens}))

    def decided(self, decision: Decision) -> None:
        """Count a budget."""
        if not decision.reason.failed_open:
            self._counts.add(decision.bound_budget_tokens)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count what a request needed, where its response says so."""
        decision, outcome = observation.decision, observation.outcome
        if lesson.error_ratio is None or not outcome.prompt_tokens:
            return
        output = outcome.completion_tokens or 0
        if decision.declared:
            output = decision.output_tokens
        needed = outcome.prompt_tokens + output
        self._counts.observe(decision.bound_budget_tokens, needed)

    def advice(self) -> Advice | None:
        """The advice, once there is one to give."""
        return advise(self._counts, *self._limits) if self._split else None

    def report(self) -> dict[str, Any]:
        """The budgets' distribution and the advice, as plain values."""
        advice = self.advice()
        return {
            "budgets": {
                "thresholds": self._counts.thresholds,
                "shares": [round(share, 4) for share in self._counts.shares()],
                "requests": round(self._counts.requests, 1),
            },
            "advice": None if advice is None else asdict(advice),
        }
