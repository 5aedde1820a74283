"""Settings of a fleet with several models."""

from __future__ import annotations

from dataclasses import dataclass, field

from extproc.config.accepted import HEADER, MODEL_NAME, MODEL_NAMES
from extproc.config.estimate import MediaConfig, OutputConfig, RiskConfig
from extproc.config.pools import PoolConfig

OTHER_MODEL = "other"
"""Name under which all models that are not configured are counted; reserved."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One base model: its pools and its overrides."""

    pools: tuple[PoolConfig, ...]
    """The model's pools, in order of `max_model_len`."""
    adapters: tuple[str, ...] = field(default=(), metadata=MODEL_NAMES)
    """Other names in clients' requests, such as LoRA adapters; exact, or patterns with
    `*` and `?`. They are routed and learned as the model. Names that its servers list
    need not be given."""
    output: OutputConfig | None = None
    """Overrides of `output` for this model; keys that are not set keep the fleet's
    value."""
    risk: RiskConfig | None = None
    """Overrides of `risk` for this model."""
    media: MediaConfig | None = None
    """Overrides of `media` for this model; keys that are not set keep the fleet's
    value."""


@dataclass(frozen=True, slots=True)
class DefaultModelConfig:
    """Routing of requests for models that are not configured."""

    default: str = field(metadata=MODEL_NAME)
    """The model whose pools receive them."""


@dataclass(frozen=True, slots=True)
class ModelNameConfig:
    """Source of a request's model name."""

    header: str | None = field(default=None, metadata=HEADER)
    """Request header with the model name, set by an earlier filter, such as
    `x-gateway-model-name`; takes precedence over the body. Envoy must remove it from
    clients' requests. Unset: the name in the body is used."""
