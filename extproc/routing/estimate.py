"""The interface of estimators of prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from extproc.routing.features import Features


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """An estimate of prompt tokens."""

    prompt_tokens: int
    """The point estimate, at least 1."""
    bound_tokens: int
    """Upper bound for routing to a smaller pool, >= the point estimate."""


EstimateTerms = Mapping[str, object]
"""An estimator's own values by name: numbers, texts that are not the client's, and
lists and mappings of such values."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """A point estimate and its expected error."""

    tokens: float
    """Estimated prompt tokens, > 0."""
    spread: float
    """Relative standard deviation of counted tokens around the estimate, > 0."""


class Estimator(Protocol):
    """An estimator of prompt tokens that learns from the counts of backends.

    ``bound.Bounded`` adds a bound to its estimates. An estimator whose state can be
    saved is also a ``mergeable.Mergeable``.

    Not thread-safe: one event loop calls it. No method awaits, so each call is atomic.
    """

    name: str

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the prompt tokens of a request for a served model."""

    def point(self, model: str, category: str, features: Features) -> float:
        """Return ``predict(...).tokens`` without computing the spread."""

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add to a prompt.

        Args:
            model: name of the served model.
            category: the whole prompt's category.
            features: features of the further messages only.
        """

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn from one counted prompt (``prompt_tokens`` > 0).

        Returns:
            The prediction for this prompt before learning from it.
        """

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the numbers behind ``predict`` for the same arguments, by name."""


def fewest_tokens(features: Features) -> float:
    """Return a lower limit on a prompt's tokens for any tokenizer.

    The longest tokens of known vocabularies are runs of 80 to 128 spaces.
    """
    return max(1.0, (features.text_bytes + features.tools_bytes) / 128)


def possible_tokens(features: Features, tokens: float) -> float:
    """Return the number of tokens that is possible for a prompt and nearest to it."""
    if tokens < (fewest := fewest_tokens(features)):
        return fewest
    return min(tokens, most_tokens(features))


def most_tokens(features: Features) -> float:
    """Return an upper limit on a prompt's tokens for any tokenizer.

    Byte-level vocabularies use at most one token for a byte of text. Known templates
    add at most 35 tokens per prompt and 10 per message, and print tools with
    indentation.
    """
    template = 64.0 + 16.0 * features.messages
    text_bytes = features.text_bytes
    if features.optional:
        text_bytes += features.optional_bytes
    return template + text_bytes + 2.0 * features.tools_bytes
