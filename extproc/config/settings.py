"""The whole configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from extproc.config.estimate import (
    ConversationsConfig,
    EstimatorConfig,
    MediaConfig,
    OutputConfig,
    RiskConfig,
)
from extproc.config.models import DefaultModelConfig, ModelConfig, ModelNameConfig
from extproc.config.pools import DEFAULT_POOLS, LoadConfig, PoolConfig
from extproc.config.requests import CategoryConfig, FeedbackConfig, RequestsConfig
from extproc.config.serving import (
    ApiConfig,
    LogConfig,
    OtelConfig,
    RecordingConfig,
    ServerConfig,
    StateConfig,
)
from extproc.schema import RESTART


class Mode(StrEnum):
    """Effect of the decisions."""

    ROUTE = "route"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, with working defaults."""

    mode: Mode = Mode.ROUTE
    """`shadow` decides, learns, counts and reports decisions in the metadata, but
    changes no request's route."""
    server: ServerConfig = ServerConfig()
    pools: tuple[PoolConfig, ...] = DEFAULT_POOLS
    """Pools in order of `max_model_len`, if all serve the same model."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Base models by name, each with its own pools; replaces `pools`."""
    unknown_model: Literal["pass"] | DefaultModelConfig = "pass"
    """With `models`, handling of requests for any other model: `pass` keeps their route
    and sets no header; `{default: NAME}` sends them to that model's pools."""
    model: ModelNameConfig = ModelNameConfig()
    requests: RequestsConfig = RequestsConfig()
    category: CategoryConfig = CategoryConfig()
    estimator: EstimatorConfig = EstimatorConfig()
    output: OutputConfig = OutputConfig()
    risk: RiskConfig = RiskConfig()
    conversations: ConversationsConfig = ConversationsConfig()
    media: MediaConfig = MediaConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    load: LoadConfig = LoadConfig()
    state: StateConfig = field(default=StateConfig(), metadata=RESTART)
    api: ApiConfig = field(default=ApiConfig(), metadata=RESTART)
    recording: RecordingConfig = field(default=RecordingConfig(), metadata=RESTART)
    otel: OtelConfig = field(default=OtelConfig(), metadata=RESTART)
    log: LogConfig = LogConfig()

    @property
    def all_pools(self) -> tuple[PoolConfig, ...]:
        """Pools of all models."""
        own = (pool for model in self.models.values() for pool in model.pools)
        return (*self.pools, *own)
