"""The interface of an estimator: prompt tokens from a prompt's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from extproc.routing.features import Features


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """Prompt tokens, estimated."""

    prompt_tokens: int
    """The point estimate, at least 1."""
    bound_tokens: int
    """The upper bound that routing to a smaller pool uses, >= the point estimate."""


EstimateTerms = Mapping[str, object]
"""An estimator's own numbers, by name: numbers, texts that no client wrote, and lists
and mappings of them."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """A point estimate and the error that the estimator expects of it."""

    tokens: float
    """Estimated prompt tokens, > 0."""
    spread: float
    """Relative standard deviation of the counted tokens about the estimate, > 0."""


class Estimator(Protocol):
    """Estimates prompt tokens, and learns from the counts of backends.

    ``bound.Bounded`` puts a bound around its estimates. An estimator that keeps what it
    learned is a ``mergeable.Mergeable`` too.

    Not thread-safe: one event loop calls it. No method awaits, so each is atomic there.
    """

    name: str

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the prompt tokens of a request for a served model."""

    def point(self, model: str, category: str, features: Features) -> float:
        """Return ``predict(...).tokens``, without the time that the spread takes."""

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add to a prompt.

        Args:
            model: served model's name.
            category: of the whole prompt.
            features: of the further messages alone.
        """

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn from one counted prompt (``prompt_tokens`` > 0).

        Returns:
            The prediction for this prompt before it was learned from.
        """

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the numbers behind ``predict`` of the same arguments, by name."""


def fewest_tokens(features: Features) -> float:
    """Return a lower limit on a prompt's tokens, whatever the tokenizer.

    The longest tokens of known vocabularies are runs of blanks, of 80 to 128 bytes.
    """
    return max(1.0, (features.text_bytes + features.tools_bytes) / 128)


def most_tokens(features: Features) -> float:
    """Return an upper limit on a prompt's tokens, whatever the tokenizer.

    Byte-level vocabularies never take more than a token a byte of text; known templates
    add up to 35 tokens and 10 a message, and print tools with indentation.
    """
    template = 64.0 + 16.0 * features.messages
    text_bytes = features.text_bytes
    if features.optional:
        text_bytes += features.optional_bytes
    return template + text_bytes + 2.0 * features.tools_bytes
