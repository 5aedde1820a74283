"""From a configuration to the objects that it describes."""

from __future__ import annotations

from extproc.config import Config, EstimatorConfig, EstimatorName, FeedbackConfig
from extproc.exchange.feedback import FeedbackSampler
from extproc.routing.estimate import Estimator
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import Ema, TextEma, TextRatios
from extproc.routing.router import MediaTokens, Router

AUTO_SAMPLE_FLOOR = 0.01
"""Least share of the exchanges observed once all is known, for `sample: auto`."""


def build_router(config: Config) -> Router:
    """The router that a configuration describes."""
    policy = Policy(
        [
            Pool(p.name, p.max_model_len, p.threshold_tokens or p.max_model_len)
            for p in config.pools
        ]
    )
    media = config.media
    return Router(
        policy,
        build_estimator(config.estimator),
        TextRatios(),
        default_output_tokens=config.output.default_tokens,
        media_tokens=MediaTokens(
            media.image_tokens, media.audio_tokens, media.file_tokens
        ),
        hints=config.category.hints,
    )


def build_estimator(config: EstimatorConfig) -> Estimator:
    """The estimator of a name."""
    match config.name:
        case EstimatorName.EMA:
            return Ema(config.beta, config.gamma)
        case EstimatorName.EMA_TEXT:
            return TextEma()


def build_sampler(config: FeedbackConfig) -> FeedbackSampler:
    """The sampler that a configuration describes."""
    match config.sample:
        case "auto":
            return FeedbackSampler(AUTO_SAMPLE_FLOOR)
        case "all":
            return FeedbackSampler(1.0, adaptive=False)
        case rate:
            return FeedbackSampler(float(rate), adaptive=False)
