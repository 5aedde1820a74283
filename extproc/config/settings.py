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
    """What becomes of the decisions."""

    ROUTE = "route"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; the defaults run."""

    mode: Mode = Mode.ROUTE
    """`shadow` decides, learns, counts and says so in the metadata, but leaves every
    request on the route that it has."""
    server: ServerConfig = ServerConfig()
    pools: tuple[PoolConfig, ...] = DEFAULT_POOLS
    """The pools, in order of `max_model_len`, if all serve one model."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Base models by name, each with pools of its own, in place of `pools`."""
    unknown_model: Literal["pass"] | DefaultModelConfig = "pass"
    """With `models`, a request for none of them: `pass` leaves it on the route that it
    has, with no header; `{default: NAME}` sends it to that model's pools."""
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
        """The pools of every model."""
        own = (pool for model in self.models.values() for pool in model.pools)
        return (*self.pools, *own)
