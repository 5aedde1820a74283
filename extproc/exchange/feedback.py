"""Which exchanges are looked at for their usage: dense while uncertain, then thin."""

from __future__ import annotations

from extproc.routing.router import Decision

DENSE_SAMPLES = 200
"""Responses of a category that are all looked at; the ratio then moves by under 1 %
with any one of them."""

NEAR_THRESHOLD = 0.25
"""Budgets within this share of their pool's limit weigh more: their errors matter."""

NEAR_WEIGHT = 4.0

_GOLDEN = 0.6180339887498949


class FeedbackSampler:
    """Chooses the exchanges to observe.

    Args:
        rate: share of the exchanges once a category is known, 0 to 1.
        dense_samples: observed exchanges of a category until then.

    Deterministic: the k-th exchange is chosen if ``frac(k * golden ratio)`` falls
    below the rate, which spreads the choices evenly and keeps in step with no
    periodic traffic.
    """

    def __init__(self, rate: float, dense_samples: int = DENSE_SAMPLES) -> None:
        self._rate = rate
        self._dense_samples = dense_samples
        self._observed: dict[str, int] = {}
        self._position = 0.0

    def wants(self, decision: Decision) -> bool:
        """Whether this decision's response is to be observed."""
        if self._observed.get(decision.category, 0) < self._dense_samples:
            return True
        limit = decision.pool.threshold_tokens
        distance = abs(decision.bound_budget_tokens - limit)
        near = distance <= NEAR_THRESHOLD * limit
        self._position = (self._position + _GOLDEN) % 1.0
        return self._position < self._rate * (NEAR_WEIGHT if near else 1.0)

    def observed(self, category: str) -> None:
        """Note that a response of a category was learned from."""
        count = self._observed.get(category, 0)
        if count < self._dense_samples:
            self._observed[category] = count + 1
