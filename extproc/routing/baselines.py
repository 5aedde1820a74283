"""What others estimate by, to compare with."""

from __future__ import annotations

import math

from extproc.routing.estimate import Estimate
from extproc.routing.features import Features


class BytesOverFour:
    """The rule of thumb: four bytes of the body a token. Learns nothing."""

    name = "bytes/4"

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        """Return a quarter of the body's bytes."""
        prompt_tokens = max(1, math.ceil(features.body_bytes / 4))
        return Estimate(prompt_tokens, prompt_tokens)

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> None:
        """Learn nothing."""


class SemanticRouterRule:
    """The calibrated counter of the vLLM semantic router, from its description.

    One conservative bytes-per-token ratio over all requests, as its context routing
    uses (version 0.3): seeded by the first sample, used after ten, and moved 0.9 of
    the way to lower observations and 0.1 of the way to higher ones. The estimate is
    the larger of ``text bytes / ratio`` and a floor of a quarter token a byte of text,
    a token a byte of tool definitions, 4 a message and 8 a tool. Requests with tools
    are not learned from. Divergence: its 8 tokens a past tool call and 8,192 an image
    are left out, since those are not text; calls count as text here.
    """

    name = "semantic-router"

    _DEFAULT_BYTES_PER_TOKEN = 4.0
    _MIN_SAMPLES = 10
    _STEP_DOWN = 0.9
    _STEP_UP = 0.1

    def __init__(self) -> None:
        self._bytes_per_token = self._DEFAULT_BYTES_PER_TOKEN
        self._samples = 0

    def estimate(self, model: str, category: str, features: Features) -> Estimate:
        """Return the larger of the calibrated count and the floor."""
        calibrated = self._samples >= self._MIN_SAMPLES
        ratio = self._bytes_per_token if calibrated else self._DEFAULT_BYTES_PER_TOKEN
        floor = (
            math.ceil(features.text_bytes / 4)
            + features.tools_bytes
            + 4 * features.messages
            + 8 * features.tools
        )
        prompt_tokens = max(1, math.ceil(features.text_bytes / ratio), floor)
        return Estimate(prompt_tokens, prompt_tokens)

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> None:
        """Move the ratio towards that of a prompt without tools."""
        if features.tools or not features.text_bytes:
            return
        observed = features.text_bytes / prompt_tokens
        if self._samples == 0:
            self._bytes_per_token = observed
        else:
            step = observed - self._bytes_per_token
            self._bytes_per_token += step * (
                self._STEP_DOWN if step < 0 else self._STEP_UP
            )
        self._samples += 1
