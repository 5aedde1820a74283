"""Bytes-per-token ratios by category: the papers' estimator, and one for decoded text.

Both estimate ``tokens = bytes / ratio`` and learn the ratio of each category from
counted prompts. ``Ema`` is the scheme of arXiv 2604.08075 as published. ``TextEma``
keeps the mechanism and corrects what made it worse than ``bytes / 4`` on real requests:
it counts decoded text instead of wire bytes (whose number for one request varies
2.7-fold between JSON encoders), subtracts the chat template's tokens before it divides,
starts from the first sample instead of 4.0, and weights a prompt by its size, since the
many short prompts consist mostly of the template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from extproc.routing.estimate import EstimateTerms, Prediction
from extproc.routing.features import Features
from extproc.routing.mergeable import DecayedSums, Groups

DEFAULT_BYTES_PER_TOKEN = 4.0
"""The papers' initial value, and the rule of thumb for English."""

MIN_BYTES_PER_TOKEN = 0.8
"""Lower limit for any vocabulary; hex has 1.1 bytes per token if digits are split."""

MAX_BYTES_PER_TOKEN = 14.0
"""Upper limit for any text: Hindi on Gemma 3 has 9 to 10 bytes per token."""

SPREAD = 0.2
"""Relative standard deviation of counts around the estimates from a ratio. The
published estimator's mean error is 19 % for six tokenizers on ten kinds of text."""

TEMPLATE_TOKENS = 8
"""Tokens that a chat template adds to one user message: 3 (Mistral) to 10 (Llama 3)."""

MESSAGE_TOKENS = 4
"""Tokens added by each further message: 1.5 (Mistral) to 5 (Llama 3, Qwen 3)."""


_LARGE_SHARE = 0.05
"""Share of optional text in a prompt above which nothing is learned from the prompt."""


def clamp_ratio(bytes_per_token: float) -> float:
    """Clamp an observed ratio to the range possible for text, in bytes per token."""
    return min(max(bytes_per_token, MIN_BYTES_PER_TOKEN), MAX_BYTES_PER_TOKEN)


@dataclass(slots=True)
class _Published:
    bytes_per_token: float = DEFAULT_BYTES_PER_TOKEN
    deviation: float = 0.0
    observations: int = 0


class Ema:
    """The papers' estimator, exactly as published.

    ``tokens = ceil(body bytes / (c - gamma * sigma))`` with, after each response,
    ``c += (1 - beta) * (observed - c)`` and
    ``sigma += (1 - beta) * (|observed - c| - sigma)`` (arXiv 2604.08075; beta 0.95,
    gamma 1.0, initial ratio 4.0; initial deviation 0, since the papers give none). The
    papers do not specify whether the deviation is from the ratio before or after its
    update; here it is from the ratio after the update. Divergence: the divisor is at
    least ``MIN_BYTES_PER_TOKEN``; the formula could divide by zero or less.

    The papers route by this conservative estimate; they have no other bound.
    """

    name = "ema"
    component = "ema.1"

    def __init__(self, beta: float = 0.95, gamma: float = 1.0) -> None:
        self._beta = beta
        self._gamma = gamma
        self._learned: dict[str, _Published] = {}

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Divide the body's bytes by the category's conservative ratio."""
        return Prediction(self.point(model, category, features), SPREAD)

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add, using only these messages."""
        return self.predict(model, category, features)

    def point(self, model: str, category: str, features: Features) -> float:
        """Return the point estimate."""
        divisor = self._divisor(self._learned.get(category))
        return max(1.0, math.ceil(features.body_bytes / divisor))

    def _divisor(self, ratio: _Published | None) -> float:
        if ratio is None:
            return DEFAULT_BYTES_PER_TOKEN
        conservative = ratio.bytes_per_token - self._gamma * ratio.deviation
        return max(conservative, MIN_BYTES_PER_TOKEN)

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the ratio of the category and the deviation subtracted from it."""
        learned = self._learned.get(category)
        ratio = learned or _Published(DEFAULT_BYTES_PER_TOKEN)
        return {
            "formula": "body_bytes / (bytes_per_token - gamma * deviation)",
            "learned": learned is not None,
            "bytes_per_token": ratio.bytes_per_token,
            "deviation": ratio.deviation,
            "gamma": self._gamma,
            "divisor": self._divisor(learned),
        }

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn the ratio of the prompt's category, whatever the model."""
        prediction = self.predict(model, category, features)
        ratio = self._learned.setdefault(category, _Published())
        observed = features.body_bytes / prompt_tokens
        step = 1.0 - self._beta
        ratio.bytes_per_token += step * (observed - ratio.bytes_per_token)
        ratio.deviation += step * (
            abs(observed - ratio.bytes_per_token) - ratio.deviation
        )
        ratio.observations += 1
        return prediction

    def group_keys(self) -> list[str]:
        """Return the categories."""
        return list(self._learned)

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a ratio, as its decaying distance from the initial value."""
        ratio = self._learned.get(key)
        if ratio is None:
            return None
        distance = ratio.bytes_per_token - DEFAULT_BYTES_PER_TOKEN
        sums = np.array([distance, ratio.deviation])
        return DecayedSums(self._beta, ratio.observations, sums)

    def restore(self, groups: Groups) -> None:
        """Replace these ratios; leave all others unchanged."""
        self._learned |= {
            category: _Published(
                DEFAULT_BYTES_PER_TOKEN + float(group.sums[0]),
                float(group.sums[1]),
                group.observations,
            )
            for category, group in groups.items()
            if group.sums.shape == (2,)
        }


@dataclass(slots=True)
class _Sums:
    """Decayed sums over prompts; they can be merged, and large prompts weigh more."""

    text_bytes: float = 0.0
    text_tokens: float = 0.0
    observations: int = 0


class TextRatios:
    """Ratios of decoded text bytes to text tokens, by category.

    Each ratio is the quotient of two decayed sums. Before a sample is added, both sums
    are multiplied by ``smoothing``, so that the last ``1 / (1 - smoothing)`` prompts
    determine the ratio, large prompts more than small ones. The ratios are learned with
    every estimator, because the metrics show them and ``TextEma`` uses them.
    """

    component = "ratios.1"

    def __init__(self, smoothing: float = 0.98) -> None:
        self._smoothing = smoothing
        self._sums: dict[str, _Sums] = {}

    def bytes_per_token(self, category: str) -> float | None:
        """Return the learned ratio, or None before the first sample."""
        sums = self._sums.get(category)
        return None if sums is None else sums.text_bytes / sums.text_tokens

    def all(self) -> dict[str, float]:
        """Return every learned ratio, by category."""
        return {c: s.text_bytes / s.text_tokens for c, s in self._sums.items()}

    def observe(self, category: str, features: Features, prompt_tokens: int) -> None:
        """Learn from one counted prompt.

        Prompts without text are ignored, and so are prompts in which the template may
        have left out much of the text.

        A sample's ratio is clamped to the range possible for text, so that a false
        count moves the quotient no more than an extreme text would.
        """
        text_bytes = features.text_bytes + features.tools_bytes
        if features.optional_bytes >= _LARGE_SHARE * text_bytes:
            return
        text_tokens = max(1, prompt_tokens - template_tokens(features))
        ratio = clamp_ratio(text_bytes / text_tokens)
        sums = self._sums.setdefault(category, _Sums())
        sums.text_bytes = self._smoothing * sums.text_bytes + text_bytes
        sums.text_tokens = self._smoothing * sums.text_tokens + text_bytes / ratio
        sums.observations += 1

    def group_keys(self) -> list[str]:
        """Return the categories."""
        return list(self._sums)

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a category's sums, or None if there are none."""
        sums = self._sums.get(key)
        if sums is None:
            return None
        pair = np.array([sums.text_bytes, sums.text_tokens])
        return DecayedSums(self._smoothing, sums.observations, pair)

    def restore(self, groups: Groups) -> None:
        """Replace these sums; leave all others unchanged."""
        self._sums |= {
            category: _Sums(
                float(group.sums[0]), float(group.sums[1]), group.observations
            )
            for category, group in groups.items()
            if group.sums.shape == (2,) and (group.sums > 0).all()
        }


def template_tokens(features: Features) -> int:
    """Return the approximate tokens that a chat template adds, for any model."""
    return TEMPLATE_TOKENS + MESSAGE_TOKENS * max(0, features.messages - 1)


class TextEma:
    """Estimates bytes of text over the category's ratio, plus template tokens."""

    name = "ema-text"
    component = "ema-text.1"

    def __init__(self) -> None:
        self._ratios = TextRatios()

    def predict(self, model: str, category: str, features: Features) -> Prediction:
        """Divide text and tools by the category's ratio, and add template tokens."""
        return Prediction(self.point(model, category, features), SPREAD)

    def continued(self, model: str, category: str, features: Features) -> Prediction:
        """Estimate the tokens that further messages add, using only these messages."""
        return self.predict(model, category, features)

    def point(self, model: str, category: str, features: Features) -> float:
        """Return the point estimate."""
        ratio = self._ratios.bytes_per_token(category) or DEFAULT_BYTES_PER_TOKEN
        text_bytes = features.text_bytes + features.tools_bytes
        text_bytes += features.optional_bytes  # as if the template rendered all of it
        return max(1.0, template_tokens(features) + math.ceil(text_bytes / ratio))

    def explain(self, model: str, category: str, features: Features) -> EstimateTerms:
        """Return the ratio of the category and the template's tokens."""
        ratio = self._ratios.bytes_per_token(category)
        return {
            "formula": "template_tokens + (text_bytes + tools_bytes) / bytes_per_token",
            "learned": ratio is not None,
            "template_tokens": template_tokens(features),
            "bytes_per_token": ratio or DEFAULT_BYTES_PER_TOKEN,
        }

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        """Learn the ratio of the prompt's category, whatever the model."""
        prediction = self.predict(model, category, features)
        self._ratios.observe(category, features, prompt_tokens)
        return prediction

    def group_keys(self) -> list[str]:
        """Return the categories."""
        return self._ratios.group_keys()

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a category's sums, or None if there are none."""
        return self._ratios.group(key)

    def restore(self, groups: Groups) -> None:
        """Replace these sums; leave all others unchanged."""
        self._ratios.restore(groups)
