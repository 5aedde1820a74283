"""Estimators of other projects, for comparison."""

from __future__ import annotations

import math

from extproc.routing.estimate import EstimateTerms, Prediction
from extproc.routing.features import Features

# Relative standard deviation of counts around these estimates; the mean errors are 17 %
# or more.
_SPREAD = 0.2


class BytesOverFour:
    """The rule of thumb: one token for four bytes of the body. Learns nothing."""

    name = "bytes/4"

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Return a quarter of the body's bytes."""
        return Prediction(self.point(model, category, features), _SPREAD)

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add, from the messages alone."""
        return self.predict(model, category, features)

    def point(self, model: str, category: str, features: Features) -> float:
        """Return a quarter of the body's bytes."""
        return max(1.0, math.ceil(features.body_bytes / 4))

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn nothing."""
        return self.predict(model, category, features)

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the formula."""
        return {"formula": "body_bytes / 4"}


class SemanticRouterRule:
    """The calibrated counter of the vLLM Semantic Router, from its description.

    All requests share one conservative ratio of bytes per token, as in that router's
    context routing (version 0.3). The first sample sets the ratio, which is used after
    ten samples. A lower observation moves the ratio by 0.9 of the difference, a higher
    one by 0.1. The estimate is ``text bytes / ratio``, or a floor if that is larger: a
    quarter token per byte of text, one token per byte of tool definitions, 4 per
    message and 8 per tool. Nothing is learned from requests with tools. In contrast to
    the original, 8 tokens for a past tool call and 8,192 for an image are left out,
    because images are not text and calls count as text here.
    """

    name = "semantic-router"

    _DEFAULT_BYTES_PER_TOKEN = 4.0
    _MIN_SAMPLES = 10
    _STEP_DOWN = 0.9
    _STEP_UP = 0.1

    def __init__(self) -> None:
        self._bytes_per_token = self._DEFAULT_BYTES_PER_TOKEN
        self._samples = 0

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Return the larger of the calibrated count and the floor."""
        return Prediction(self.point(model, category, features), _SPREAD)

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add, from the messages alone."""
        return self.predict(model, category, features)

    def point(self, model: str, category: str, features: Features) -> float:
        """Return the larger of the calibrated count and the floor."""
        calibrated = self._samples >= self._MIN_SAMPLES
        ratio = self._bytes_per_token if calibrated else self._DEFAULT_BYTES_PER_TOKEN
        floor = (
            math.ceil(_text_bytes(features) / 4)
            + features.tools_bytes
            + 4 * features.messages
            + 8 * features.tools
        )
        return max(1.0, math.ceil(_text_bytes(features) / ratio), floor)

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Move the ratio toward the prompt's own, unless the prompt has tools."""
        prediction = self.predict(model, category, features)
        if features.text_bytes and not (features.tools or features.optional):
            self._calibrate(features, prompt_tokens)
        return prediction

    def _calibrate(self, features: Features, prompt_tokens: int) -> None:
        observed = features.text_bytes / prompt_tokens
        if self._samples == 0:
            self._bytes_per_token = observed
        else:
            step = observed - self._bytes_per_token
            self._bytes_per_token += step * (
                self._STEP_DOWN if step < 0 else self._STEP_UP
            )
        self._samples += 1

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the calibrated ratio."""
        return {
            "formula": "max(text_bytes / bytes_per_token, floor)",
            "learned": self._samples >= self._MIN_SAMPLES,
            "bytes_per_token": self._bytes_per_token,
        }


def _text_bytes(features: Features) -> int:
    return features.text_bytes + features.optional_bytes
