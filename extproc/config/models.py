"""Settings of a fleet of several models."""

from __future__ import annotations

from dataclasses import dataclass, field

from extproc.config.accepted import HEADER, MODEL_NAME, MODEL_NAMES
from extproc.config.estimate import MediaConfig, OutputConfig, RiskConfig
from extproc.config.pools import PoolConfig

OTHER_MODEL = "other"
"""The name under which models that are not configured are counted: no model's."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One base model: the pools that serve it, and what differs for it."""

    pools: tuple[PoolConfig, ...]
    """Its pools, in order of `max_model_len`."""
    adapters: tuple[str, ...] = field(default=(), metadata=MODEL_NAMES)
    """Other names that clients ask by: LoRA adapters, exact or with `*` and `?`. They
    are routed and learned as the model. What its servers list is known without."""
    output: OutputConfig | None = None
    """Unset: the fleet's; of one that is set, the keys that are not."""
    risk: RiskConfig | None = None
    """Unset: the fleet's."""
    media: MediaConfig | None = None
    """Unset: the fleet's; of one that is set, the keys that are not."""


@dataclass(frozen=True, slots=True)
class DefaultModelConfig:
    """Where requests for models that are not configured go."""

    default: str = field(metadata=MODEL_NAME)
    """The model whose pools take them."""


@dataclass(frozen=True, slots=True)
class ModelNameConfig:
    """Where a request's model is read from."""

    header: str | None = field(default=None, metadata=HEADER)
    """Request header with the name, set by a parser before this one, such as
    `x-gateway-model-name`; it counts before the body's. Envoy must strip the clients'
    own. Unset: the body names the model."""
