"""Prompt tokens of images, audio, video and files, learned for each served model.

A part's tokens are modeled as linear in ``MEDIA_TERMS``, by the same Bayesian
regression as text but with separate coefficients, so that responses with media do not
change the coefficients of text. Vision models count pixels, tiles or patches; the terms
of an image are those quantities, so that linear combinations of them match or
approximate the public formulas of ten families (``_FAMILIES``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from extproc.routing.arrays import Matrix, Vector
from extproc.routing.bounded_table import MODELS, BoundedTable
from extproc.routing.mergeable import MEMORY, DecayedSums, Groups
from extproc.routing.posterior import Posterior
from extproc.routing.prior import Prior, make_prior
from extproc.routing.request import Prompt

MEDIA_TERMS = (
    "image",
    "megapixels up to 0.2",
    "megapixels up to 1.1",
    "megapixels",
    "tiles of 448 pixels",
    "tiles of 512 pixels",
    "thousand patches of 16 pixels",
    "image of unknown size",
    "image of low detail",
    "audio",
    "seconds of audio",
    "audio of unknown length",
    "video",
    "seconds of video",
    "video of unknown length",
    "file",
)
"""Names of the elements of a media vector."""

_IMAGE_TERMS = 7

_FAMILIES = {
    "Qwen2.5-VL": (-1, -57, 86, 1204, 0, 0, 5),
    "Qwen2.5-VL, at most 1,280": (-28, 71, 731, 1, -1, 32, 98),
    "Qwen3-VL": (8, -84, 52, 942, 1, -1, -1),
    "Pixtral": (1, 2, 7, 1, 0, 0, 994),
    "Mistral 3.1": (-11, -273, 298, 105, -3, 29, 315),
    "LLaVA 1.5": (573, 5, -1, 0, 0, 0, 0),
    "Gemma 3": (260, 1, 0, 0, 0, 0, 0),
    "InternVL": (3, -16, 23, 4, 248, 3, 1),
    "GPT-4o": (90, -1, 55, -1, 0, 161, -6),
    "Llama 4": (-89, 171, 715, 5, 1, 115, 260),
}
"""Tokens per term, fitted to the families' public formulas on 3,000 image sizes:
Qwen's smart resize, Mistral's patches with row breaks, InternVL's and Llama's tiles of
the closest aspect ratio, OpenAI's tile rule. Mean errors are 0.1 to 13.6 %."""

_IMAGE_SPREADS = (60.0, 100.0, 100.0, 100.0, 20.0, 20.0, 100.0)
"""Standard deviation of a family's coefficient outside the span of known families."""

_NOISE = 0.1
"""Relative standard deviation of media tokens around the best linear model."""

_TEXT_NOISE = 0.05
"""Relative standard deviation of the text estimate that is subtracted from a count."""

_BOUND_DEVIATIONS = 2.33
"""Distance from estimate to bound in standard deviations; 1 % of a normal distribution
lies above the bound."""

_ROBUST_DEVIATIONS = 4.0

_MAX_TILES = 12
_PATCH_SIDE, _PATCH = 1024, 16


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Initial estimates for parts of unknown size or length, in prompt tokens.

    An image takes 64 to 765 tokens with OpenAI, and 256 to 16,384 with vision models in
    vLLM, depending on its size. Audio takes about 25 tokens a second. A file counts as
    one page of text.
    """

    image: int = 1024
    audio: int = 1500
    """Tokens of an audio or video part of unknown length."""
    file: int = 2048


class MediaVector:
    """Accumulator for the terms of a prompt's media parts."""

    __slots__ = ("terms",)

    def __init__(self) -> None:
        self.terms = [0.0] * len(MEDIA_TERMS)

    def add_image(self, size: tuple[int, int] | None, *, low_detail: bool) -> None:
        """Add an image.

        Args:
            size: width and height in pixels, each above 0; None if unknown.
            low_detail: whether the client requests a downscaled image.
        """
        if low_detail:
            self.terms[8] += 1.0
        elif size is None:
            self.terms[7] += 1.0
        else:
            for at, term in enumerate(image_terms(*size)):
                self.terms[at] += term

    def add_audio(self, seconds: float | None) -> None:
        """Add audio of a length in seconds, or None if it is unknown."""
        self._add_lasting(9, seconds)

    def add_video(self, seconds: float | None) -> None:
        """Add a video of a length in seconds, or None if it is unknown."""
        self._add_lasting(12, seconds)

    def _add_lasting(self, at: int, seconds: float | None) -> None:
        if seconds is None:
            self.terms[at + 2] += 1.0
        else:
            self.terms[at] += 1.0
            self.terms[at + 1] += seconds

    def add_file(self) -> None:
        """Add a file."""
        self.terms[15] += 1.0


def image_terms(width: int, height: int) -> tuple[float, ...]:
    """Return the first terms of ``MEDIA_TERMS`` for an image size in pixels."""
    megapixels = width * height / 1e6
    return (
        1.0,
        min(megapixels, 0.2),
        min(megapixels, 1.1),
        megapixels,
        float(_closest_tiles(width, height)),
        float(_openai_tiles(width, height)),
        _patches(width, height) / 1000,
    )


def _closest_tiles(width: int, height: int) -> int:
    """Return the number of InternVL's tiles.

    The grid of at most 12 tiles whose aspect ratio is closest to the image's is used,
    and a thumbnail is added. Of equally close grids, the larger one is used if the
    image has more than half of that grid's pixels.
    """
    ratio, best, columns, rows = width / height, math.inf, 1, 1
    for across in range(1, _MAX_TILES + 1):
        for down in range(1, _MAX_TILES // across + 1):
            distance = abs(ratio - across / down)
            large = width * height > 0.5 * 448 * 448 * across * down
            if distance < best or (distance == best and large):
                best, columns, rows = distance, across, down
    tiles = columns * rows
    return tiles + (tiles > 1)


def _openai_tiles(width: int, height: int) -> int:
    """Return the number of OpenAI's tiles.

    The image is scaled down to fit in 2,048 pixels, then until its shorter side fits in
    768.
    """
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    return math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def _patches(width: int, height: int) -> int:
    """Return the number of Pixtral's patches, plus one break per row.

    A patch is 16 pixels wide; the image is scaled down to fit in 1,024 pixels.
    """
    scale = max(width / _PATCH_SIDE, height / _PATCH_SIDE, 1.0)
    columns = math.ceil(width / scale / _PATCH)
    rows = math.ceil(height / scale / _PATCH)
    return columns * rows + rows


def _make_prior(constants: MediaTokens) -> Prior:
    families: Matrix = np.array(list(_FAMILIES.values()), dtype=np.float64)
    size = len(MEDIA_TERMS)
    mean, covariance = np.zeros(size), np.zeros((size, size))
    mean[:_IMAGE_TERMS] = families.mean(axis=0)
    covariance[:_IMAGE_TERMS, :_IMAGE_TERMS] = np.cov(families.T)
    spreads = np.zeros(size)
    spreads[:_IMAGE_TERMS] = _IMAGE_SPREADS
    # Means and standard deviations of the other terms.
    others = (
        (constants.image, 600.0),
        (85.0, 100.0),
        (30.0, 50.0),
        (25.0, 12.0),
        (constants.audio, 800.0),
        (100.0, 150.0),
        (250.0, 150.0),
        (constants.audio, 2000.0),
        (constants.file, 1500.0),
    )
    mean[_IMAGE_TERMS:], spreads[_IMAGE_TERMS:] = np.array(others).T
    return make_prior(mean, covariance + np.diag(spreads**2))


@dataclass(frozen=True, slots=True)
class MediaEstimate:
    """Estimated prompt tokens of a prompt's media."""

    tokens: int
    bound_tokens: int
    spread: float
    """Standard deviation of the count around ``tokens``, in tokens."""


class MediaEstimator:
    """An estimator of media tokens that learns per served model.

    Not thread-safe.

    Args:
        constants: estimates for parts of unknown size, before a model's first answer.
        models: number of models to learn separately.
    """

    component = "media.1"

    def __init__(
        self, constants: MediaTokens | None = None, *, models: int = MODELS
    ) -> None:
        prior = _make_prior(constants or MediaTokens())
        self._models = BoundedTable(lambda: Posterior(prior, MEMORY), models)
        self._untaught = Posterior(prior, MEMORY)

    def estimate(self, model: str, media: tuple[float, ...]) -> MediaEstimate:
        """Estimate the tokens of a prompt's media.

        Args:
            model: name of the served model.
            media: one number for each of ``MEDIA_TERMS``.
        """
        posterior = self._models.get(model) or self._untaught
        x: Vector = np.array(media)
        tokens = max(1.0, float(x @ posterior.mean))
        spread = math.hypot(math.sqrt(posterior.variance(x)), _NOISE * tokens)
        bound = math.ceil(tokens + _BOUND_DEVIATIONS * spread)
        return MediaEstimate(round(tokens), bound, spread)

    def observe(
        self, model: str, media: tuple[float, ...], tokens: int, text_tokens: int
    ) -> None:
        """Learn from one counted prompt.

        Args:
            model: name of the served model.
            media: one number for each of ``MEDIA_TERMS``.
            tokens: counted prompt tokens minus the estimated tokens of the text.
            text_tokens: estimated tokens of the text.
        """
        estimate = self.estimate(model, media)
        tokens = max(tokens, 1)
        noise = math.hypot(_NOISE * max(tokens, estimate.tokens), 10.0)
        noise = math.hypot(noise, _TEXT_NOISE * text_tokens)
        deviations = abs(tokens - estimate.tokens) / math.hypot(estimate.spread, noise)
        noise *= max(1.0, deviations / _ROBUST_DEVIATIONS)
        self._models.touch(model).learn(np.array(media), tokens, noise * noise)

    def group_keys(self) -> list[str]:
        """Return the names of the models."""
        return [name for name, _ in self._models.items()]

    def group(self, key: str) -> DecayedSums | None:
        """Return a copy of a model's sums, or None if it has none."""
        posterior = self._models.own(key)
        return None if posterior is None else posterior.snapshot()

    def restore(self, groups: Groups) -> None:
        """Replace the sums of these groups; leave all others unchanged."""
        for name, group in groups.items():
            posterior = self._models.admit(name)
            if posterior is not None:
                posterior.restore(group)


def media_of(prompt: Prompt) -> tuple[float, ...]:
    """Return one number for each of ``MEDIA_TERMS``, or () if there are no media."""
    if prompt.media or not prompt.has_media:
        return prompt.media
    vector = MediaVector()
    vector.terms[7] = float(prompt.images)
    vector.terms[11] = float(prompt.audios)
    vector.terms[15] = float(prompt.files)
    return tuple(vector.terms)
