"""The interface of an estimator: prompt tokens from a prompt's features."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import msgspec

from extproc.routing.features import Features


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """Prompt tokens, estimated."""

    prompt_tokens: int
    """The point estimate, at least 1."""
    bound_tokens: int
    """The upper bound that routing to a smaller pool uses, >= the point estimate."""


class QuickEstimate(msgspec.Struct, frozen=True, gc=False):
    """What can be told of a prompt in a fraction of an estimate's time."""

    estimate: Estimate
    """The same point estimate, and about the same bound."""
    most_tokens: int
    """What the bound of an estimate does not exceed."""


class Estimator(Protocol):
    """Estimates prompt tokens, and learns from what backends counted.

    One that keeps what it learned is a ``learned.Mergeable`` too.

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
class QuickEstimator(Protocol):
    """An estimator whose bound takes most of its time, and often decides nothing."""

    def quick_estimate(
        self, model: str, category: str, features: Features
    ) -> QuickEstimate:
        """Estimate the point as ``estimate`` does, and the bound roughly."""


@runtime_checkable
class Explains(Protocol):
    """An estimator that can say what its estimate is made of."""

    def explain(self, model: str, category: str, features: Features) -> dict[str, Any]:
        """The coefficients behind ``estimate`` of the same arguments, by name.

        Plain values: numbers, texts of our own, lists and mappings of them.
        """
