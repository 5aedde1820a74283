"""The interface of an estimator: prompt tokens from a prompt's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from extproc.routing.features import Features


@dataclass(frozen=True, slots=True)
class Estimate:
    """Prompt tokens, estimated."""

    prompt_tokens: int
    """The point estimate, at least 1."""
    bound_tokens: int
    """The upper bound that routing to a smaller pool uses, >= the point estimate."""


class Estimator(Protocol):
    """Estimates prompt tokens, and learns from what backends counted.

    One that keeps what it learned is a ``learned.Learner`` too.

    Not thread-safe: one event loop calls it. Neither method awaits anything, so each
    is atomic there.
    """

    name: str

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        """Estimate the prompt tokens of a request for a served model."""

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> None:
        """Learn from one counted prompt (``prompt_tokens`` > 0)."""


@runtime_checkable
class Explains(Protocol):
    """An estimator that can say what its estimate is made of."""

    def explain(self, model: str, category: str, features: Features) -> dict[str, Any]:
        """The coefficients behind ``estimate`` of the same arguments, by name.

        Plain values: numbers, texts of our own, lists and mappings of them.
        """
