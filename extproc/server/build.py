"""The parts of a server that its configuration describes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.config import (
    Config,
    ConfigError,
    EstimatorName,
    FeedbackConfig,
    Mode,
    OtelConfig,
    RecordingConfig,
    StateConfig,
    StateStore,
    UnknownLength,
)
from extproc.exchange.feedback import FeedbackSampler, SamplingHistory
from extproc.exchange.paths import PathTable
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.advice import budget_counts
from extproc.routing.allowance import OutputAllowance
from extproc.routing.baselines import BytesOverFour, SemanticRouterRule
from extproc.routing.bound import Bounded
from extproc.routing.estimate import Estimator
from extproc.routing.policy import Policy, Pool
from extproc.routing.prior import known_families
from extproc.routing.ratio import Ema, TextEma, TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.risk import Margin, NoMargin
from extproc.routing.router import MediaTokens, Router
from extproc.server.in_force import Generation
from extproc.server.learned.document import EARLIER_NAMES, NAME
from extproc.server.learned.store import DirectoryStore, Store
from extproc.server.observe.recording import Recording
from extproc.server.pools.watch import LoadWatch

if TYPE_CHECKING:
    from extproc.server.observe.tracing import Tracing

AUTO_SAMPLE_FLOOR = 0.01
"""Least share of the exchanges observed once all is known, for `sample: auto`."""


def build_policy(config: Config) -> Policy:
    """The pools that a configuration describes."""
    return Policy(
        [
            Pool(p.name, p.max_model_len, p.threshold_tokens or p.max_model_len)
            for p in config.pools
        ]
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What a configuration describes, before any of it runs."""

    first: Generation
    store: Store | None
    recording: Recording | None
    tracing: Tracing | None


def build(config: Config) -> Parts:
    """Build all that a configuration describes.

    Raises:
        ConfigError: it asks for what is not installed or cannot be opened.
    """
    return Parts(
        build_generation(config),
        build_store(config.state),
        build_recording(config.recording),
        build_tracing(config.otel),
    )


def build_generation(config: Config, previous: Generation | None = None) -> Generation:
    """Build all that is replaced at once when the configuration changes.

    Args:
        previous: the generation in force, whose counts go on where they still apply.
    """
    router = build_router(config)
    policy = router.policy
    history = None
    if previous is not None and config.feedback == previous.config.feedback:
        history = previous.sampler.history
    budgets = budget_counts(policy)
    if previous is not None and previous.budgets.thresholds == budgets.thresholds:
        budgets = previous.budgets
    return Generation(
        config,
        router,
        build_sampler(config.feedback, policy, history),
        build_exchange_settings(config),
        LoadWatch(config.pools, config.load),
        budgets,
    )


def build_exchange_settings(config: Config) -> ExchangeSettings:
    """The settings that all exchanges share."""
    return ExchangeSettings(
        max_body_bytes=config.server.max_body_bytes,
        paths=PathTable(config.requests.path_prefixes),
        reads_unknown_length=config.requests.unknown_length is UnknownLength.READ,
        responses_pool=config.requests.responses_pool,
        category_header=config.category.header,
        inject_usage=config.feedback.inject_usage,
        shadow=config.mode is Mode.SHADOW,
        decision_tokens=config.feedback.access_log,
        traced=config.otel.enabled,
    )


def build_router(config: Config, leave_out: Collection[str] = ()) -> Router:
    """The router that a configuration describes.

    Args:
        leave_out: tokenizer families that the estimator's prior must not know.
    """
    media = config.media
    return Router(
        build_policy(config),
        build_bounded_estimator(config, leave_out),
        TextRatios(),
        OutputAllowance(
            config.output.quantile,
            config.output.default_tokens,
            config.output.ceiling_tokens,
        ),
        media_tokens=MediaTokens(
            media.image_tokens, media.audio_tokens, media.file_tokens
        ),
        hints=config.category.hints,
    )


def build_bounded_estimator(config: Config, leave_out: Collection[str] = ()) -> Bounded:
    """The estimator that a configuration names, with the bound that it asks for.

    Args:
        leave_out: tokenizer families to leave out of the estimator's prior.
    """
    risk = config.risk
    holds_risk = config.estimator.name is EstimatorName.TEXT or risk.every_estimator
    margin = Margin(risk.under_estimate_rate) if holds_risk else NoMargin()
    return Bounded(build_estimator(config, leave_out), margin)


def build_estimator(config: Config, leave_out: Collection[str] = ()) -> Estimator:
    """The estimator that a configuration names.

    Args:
        leave_out: tokenizer families to leave out of its prior.
    """
    match config.estimator.name:
        case EstimatorName.TEXT:
            return TextEstimator(known_families(leave_out))
        case EstimatorName.EMA_TEXT:
            return TextEma()
        case EstimatorName.EMA:
            return Ema(config.estimator.beta, config.estimator.gamma)
        case EstimatorName.BYTES_OVER_FOUR:
            return BytesOverFour()
        case EstimatorName.SEMANTIC_ROUTER:
            return SemanticRouterRule()


def build_sampler(
    config: FeedbackConfig, policy: Policy, history: SamplingHistory | None = None
) -> FeedbackSampler:
    """The sampler that a configuration describes.

    Args:
        policy: between whose pools an error matters most.
        history: of the sampler before it; None to begin with none.
    """
    match config.sample:
        case "auto" if config.access_log:
            floor, adaptive = 0.0, False
        case "auto":
            floor, adaptive = AUTO_SAMPLE_FLOOR, True
        case "all":
            floor, adaptive = 1.0, False
        case rate:
            floor, adaptive = float(rate), False
    return FeedbackSampler(
        floor, adaptive=adaptive, limits=policy.thresholds, history=history
    )


def build_tracing(config: OtelConfig) -> Tracing | None:
    """The tracing that a configuration asks for, if it does.

    Raises:
        ConfigError: OpenTelemetry is not installed, or one of its variables is wrong.
    """
    if not config.enabled:
        return None
    try:
        from extproc.server.observe.tracing import Tracing

        return Tracing(os.environ)
    except ImportError:
        extra = "pip install 'token-budget-router[otel]'"
        raise ConfigError(f"otel.enabled: true; needs: {extra}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_recording(config: RecordingConfig) -> Recording | None:
    """The recording that a configuration describes, if one does.

    Raises:
        ConfigError: its file cannot be opened.
    """
    if config.file is None:
        return None
    try:
        return Recording(Path(config.file), config.max_bytes, time.time)
    except OSError as error:
        raise ConfigError(
            f"recording.file: {config.file!r}: {error.strerror}; accepted: a file "
            "that can be written"
        ) from None


def build_store(config: StateConfig) -> Store | None:
    """The store that a configuration describes; none if nothing is to be kept.

    Raises:
        ConfigError: Redis is wanted, but its client is not installed.
    """
    match config.store:
        case StateStore.NONE:
            return None
        case StateStore.DIRECTORY:
            return DirectoryStore(Path(config.path or "."), NAME, EARLIER_NAMES)
        case StateStore.REDIS:
            try:
                from extproc.server.learned.redis_store import RedisStore
            except ImportError:
                extra = "pip install 'token-budget-router[redis]'"
                raise ConfigError(f"state.store: 'redis'; needs: {extra}") from None
            prefix = config.key_prefix
            earlier = [f"{prefix}{name}" for name in EARLIER_NAMES]
            return RedisStore(config.url or "", f"{prefix}{NAME}", earlier)
