"""Threshold advice from the requests that pass: for the page and the metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from extproc.exchange.events import Observation
from extproc.routing.advice import Advice, advise, budget_counts
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
        """Start over if the pools' limits have changed."""
        smallest, largest = policy.pools[0], policy.pools[-1]
        limits = smallest.threshold_tokens, largest.max_model_len
        if getattr(self, "_limits", None) == limits:
            return
        self._limits = limits
        self._policy = policy
        self._counts = budget_counts(policy)

    def decided(self, decision: Decision) -> None:
        """Count a budget."""
        self._counts.decided(decision)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens that a request needed, if its response says them."""
        self._counts.observed(observation.decision, observation.outcome)

    def advice(self) -> Advice | None:
        """Return the advice once there are enough requests."""
        return advise(self._counts, self._policy)

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
