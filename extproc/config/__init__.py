"""Configuration: parses a YAML file into frozen dataclasses and validates it."""

from __future__ import annotations

from extproc.config.estimate import (
    ConversationsConfig,
    EstimatorConfig,
    EstimatorName,
    MediaConfig,
    OutputConfig,
    RiskConfig,
)
from extproc.config.models import (
    OTHER_MODEL,
    DefaultModelConfig,
    ModelConfig,
    ModelNameConfig,
)
from extproc.config.pools import DEFAULT_POOLS, LoadConfig, PoolConfig
from extproc.config.reading import ENVIRONMENT, load_config
from extproc.config.requests import (
    CategoryConfig,
    FeedbackConfig,
    RequestsConfig,
    UnknownLength,
)
from extproc.config.serving import (
    ApiConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    OtelConfig,
    RecordingConfig,
    ServerConfig,
    StateConfig,
    StateStore,
    TlsConfig,
    Transport,
)
from extproc.config.settings import Config, Mode
from extproc.schema import ConfigError, as_document

__all__ = [
    "DEFAULT_POOLS",
    "ENVIRONMENT",
    "OTHER_MODEL",
    "ApiConfig",
    "CategoryConfig",
    "Config",
    "ConfigError",
    "ConversationsConfig",
    "DefaultModelConfig",
    "EstimatorConfig",
    "EstimatorName",
    "FeedbackConfig",
    "LoadConfig",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "MediaConfig",
    "Mode",
    "ModelConfig",
    "ModelNameConfig",
    "OtelConfig",
    "OutputConfig",
    "PoolConfig",
    "RecordingConfig",
    "RequestsConfig",
    "RiskConfig",
    "ServerConfig",
    "StateConfig",
    "StateStore",
    "TlsConfig",
    "Transport",
    "UnknownLength",
    "as_document",
    "load_config",
]
