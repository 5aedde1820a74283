"""Builds the parts of a server from its configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from extproc.config import (
    Config,
    ConfigError,
    DefaultModelConfig,
    EstimatorName,
    FeedbackConfig,
    MediaConfig,
    Mode,
    OtelConfig,
    PoolConfig,
    RecordingConfig,
    StateConfig,
    StateStore,
    UnknownLength,
)
from extproc.exchange.feedback import FeedbackSampler, SamplingHistory
from extproc.exchange.gateway_limit import GatewayLimit
from extproc.exchange.paths import PathTable
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.advice import BudgetCounts, budget_counts
from extproc.routing.allowance import AllowanceRule, OutputAllowance
from extproc.routing.baselines import BytesOverFour, SemanticRouterRule
from extproc.routing.bound import Bounded
from extproc.routing.conversation import Conversations
from extproc.routing.decision import OTHER_MODEL
from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.estimate import Estimator
from extproc.routing.media import MediaTokens
from extproc.routing.models import AnyRouter, ModelRouter
from extproc.routing.policy import Policy, Pool
from extproc.routing.prior import known_families
from extproc.routing.ratio import Ema, TextEma, TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.risk import Margin, NoMargin
from extproc.routing.router import Router
from extproc.server.in_force import Generation
from extproc.server.learned.conversation_memory import ConversationMemory
from extproc.server.learned.document import EARLIER_NAMES, NAME
from extproc.server.learned.store import DirectoryStore, Store
from extproc.server.observe.recording import Recording
from extproc.server.pools.watch import LoadWatch

if TYPE_CHECKING:
    from extproc.server.observe.tracing import Tracing

AUTO_SAMPLE_FLOOR = 0.01
"""Minimum share of exchanges to observe after learning has converged, for `sample:
auto`."""


def build_policy(pools: Sequence[PoolConfig], model: str = "") -> Policy:
    """Build the policy for one model's pools.

    Args:
        pools: the configured pools.
        model: base model that the pools serve; empty if no models are configured.
    """
    return Policy(
        [
            Pool(p.name, p.max_model_len, p.threshold_tokens or p.max_model_len, model)
            for p in pools
        ]
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a server before any of them runs."""

    first: Generation
    conversations: ConversationMemory
    store: Store | None
    recording: Recording | None
    tracing: Tracing | None


def build(config: Config, shared: Path | None = None) -> Parts:
    """Build the parts that a configuration describes.

    Args:
        shared: directory that all workers share; None for a single process.

    Raises:
        ConfigError: a package that the configuration needs is not installed, or a file
            cannot be opened.
    """
    conversations = ConversationMemory(shared)
    return Parts(
        build_generation(config, conversations=conversations),
        conversations,
        build_store(config.state),
        build_recording(config.recording),
        build_tracing(config.otel),
    )


def build_generation(
    config: Config,
    previous: Generation | None = None,
    conversations: ConversationMemory | None = None,
) -> Generation:
    """Build all components that a reload replaces together.

    Args:
        previous: the generation in force. The new generation continues those of its
            counts that still apply.
        conversations: memory of conversations; None to start with an empty memory.
    """
    router = build_router(config, conversations=conversations)
    history = None
    if previous is not None and config.feedback == previous.config.feedback:
        history = previous.sampler.history
    return Generation(
        config,
        router,
        build_sampler(config.feedback, router, history),
        build_exchange_settings(config),
        LoadWatch(config.all_pools, config.load),
        _build_budgets(router, {} if previous is None else previous.budgets),
        # Keep the learned limit: the gateway is the same, and a change of
        # `max_body_bytes` needs a restart.
        GatewayLimit(config.server.max_body_bytes)
        if previous is None
        else previous.gateway_limit,
    )


def _build_budgets(
    router: AnyRouter, previous: Mapping[str, BudgetCounts]
) -> dict[str, BudgetCounts]:
    """Build the budget counts by model; continue counts with unchanged thresholds."""
    budgets = {}
    for each in router.routers:
        counts, before = budget_counts(each.policy), previous.get(each.model)
        same = before is not None and before.thresholds == counts.thresholds
        budgets[each.model] = before if before is not None and same else counts
    return budgets


def build_exchange_settings(config: Config) -> ExchangeSettings:
    """Build the settings shared by all exchanges."""
    return ExchangeSettings(
        max_body_bytes=config.server.max_body_bytes,
        paths=PathTable(config.requests.path_prefixes),
        reads_unknown_length=config.requests.unknown_length is UnknownLength.READ,
        responses_pool=config.requests.responses_pool,
        category_header=config.category.header,
        model_header=config.model.header or "",
        inject_usage=config.feedback.inject_usage,
        shadow=config.mode is Mode.SHADOW,
        decision_tokens=config.feedback.access_log,
        traced=config.otel.enabled,
    )


def build_router(
    config: Config,
    leave_out: Collection[str] = (),
    conversations: ConversationMemory | None = None,
) -> AnyRouter:
    """Build the router that a configuration describes.

    Args:
        leave_out: tokenizer families to leave out of the estimator's prior.
        conversations: memory of conversations; None to start with an empty memory.
    """
    learned = _Learned(
        build_bounded_estimator(config, leave_out),
        TextRatios(),
        _build_allowance(config),
        _build_declared_allowance(config),
        _build_conversations(config, conversations or ConversationMemory()),
    )
    if not config.models:
        policy = build_policy(config.pools)
        return _build_model(config, learned, policy, config.media)
    routers = {
        name: _build_model(
            config,
            learned,
            build_policy(model.pools, name),
            model.media or config.media,
            name,
        )
        for name, model in config.models.items()
    }
    adapters = [
        (adapter, name)
        for name, model in config.models.items()
        for adapter in model.adapters
    ]
    unknown = None
    if isinstance(config.unknown_model, DefaultModelConfig):
        default = routers[config.unknown_model.default]
        media = config.models[default.model].media or config.media
        unknown = _build_model(config, learned, default.policy, media, OTHER_MODEL)
    return ModelRouter(list(routers.values()), adapters, unknown)


class _Learned(NamedTuple):
    """Estimators that all models share; each model has its own learned state."""

    estimator: Bounded
    ratios: TextRatios
    allowance: OutputAllowance
    declared_allowance: DeclaredAllowance
    conversations: Conversations | None


def _build_model(
    config: Config,
    learned: _Learned,
    policy: Policy,
    media: MediaConfig,
    model: str = "",
) -> Router:
    return Router(
        policy,
        *learned,
        media_tokens=MediaTokens(
            media.image_tokens, media.audio_tokens, media.file_tokens
        ),
        hints=config.category.hints,
        model=model,
        retry_cut_answers=config.requests.retry_cut_answers,
    )


def _build_conversations(
    config: Config, memory: ConversationMemory
) -> Conversations | None:
    """Build the memory of conversations; None unless every response is observed."""
    observes_all = config.feedback.access_log or config.feedback.sample == "all"
    entries = config.conversations.entries
    if not entries or not observes_all:
        return None
    return Conversations(entries, memory.open(entries))


def _build_declared_allowance(config: Config) -> DeclaredAllowance:
    risks = {
        name: model.output.truncation_risk
        for name, model in config.models.items()
        if model.output is not None
    }
    return DeclaredAllowance(config.output.truncation_risk, risks=risks)


def _build_allowance(config: Config) -> OutputAllowance:
    rules = {
        name: AllowanceRule(
            model.output.quantile,
            model.output.default_tokens,
            model.output.ceiling_tokens,
        )
        for name, model in config.models.items()
        if model.output is not None
    }
    output = config.output
    return OutputAllowance(
        output.quantile,
        output.default_tokens,
        output.ceiling_tokens,
        rules,
        models=_models_apart(config),
    )


def _models_apart(config: Config) -> int:
    """Return the number of models to learn separately, including one for all others."""
    return len(config.models) + 1 if config.models else config.estimator.models


def build_bounded_estimator(config: Config, leave_out: Collection[str] = ()) -> Bounded:
    """Build the configured estimator, including its bound.

    Args:
        leave_out: tokenizer families to leave out of the estimator's prior.
    """
    risk = config.risk
    holds_risk = config.estimator.name is EstimatorName.TEXT or risk.every_estimator
    margin: Margin | NoMargin = NoMargin()
    if holds_risk:
        rates = {
            name: model.risk.under_estimate_rate
            for name, model in config.models.items()
            if model.risk is not None
        }
        rate, models = risk.under_estimate_rate, _models_apart(config)
        margin = Margin(rate, rates, models=models)
    return Bounded(build_estimator(config, leave_out), margin)


def build_estimator(config: Config, leave_out: Collection[str] = ()) -> Estimator:
    """Build the configured estimator, without its bound.

    Args:
        leave_out: tokenizer families to leave out of the estimator's prior.
    """
    match config.estimator.name:
        case EstimatorName.TEXT:
            models = _models_apart(config)
            return TextEstimator(known_families(leave_out), models=models)
        case EstimatorName.EMA_TEXT:
            return TextEma()
        case EstimatorName.EMA:
            return Ema(config.estimator.beta, config.estimator.gamma)
        case EstimatorName.BYTES_OVER_FOUR:
            return BytesOverFour()
        case EstimatorName.SEMANTIC_ROUTER:
            return SemanticRouterRule()


def build_sampler(
    config: FeedbackConfig, router: AnyRouter, history: SamplingHistory | None = None
) -> FeedbackSampler:
    """Build the sampler that a configuration describes.

    Args:
        router: the router, whose pools determine how much an estimation error matters.
        history: history of the previous sampler; None to start without a history.
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
    limits = {each.model: each.policy.thresholds for each in router.routers}
    return FeedbackSampler(floor, adaptive=adaptive, limits=limits, history=history)


def build_tracing(config: OtelConfig) -> Tracing | None:
    """Set up tracing, or return None if it is disabled.

    Raises:
        ConfigError: OpenTelemetry is not installed, or one of its environment variables
            is invalid.
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
    """Open the configured recording, or return None if none is configured.

    Raises:
        ConfigError: the recording's file cannot be opened.
    """
    if config.file is None:
        return None
    try:
        return Recording(Path(config.file), config.max_bytes, time.time)
    except OSError as error:
        raise ConfigError(
            f"recording.file: {config.file!r}: {error.strerror}; expected a "
            "writable file"
        ) from None


def build_store(config: StateConfig) -> Store | None:
    """Open the configured store, or return None if learned state is not stored.

    Raises:
        ConfigError: Redis is configured, but its client is not installed.
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
