"""A fleet as gateways see it: its models, their headers, the gateway's own answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extproc.config import Config, DefaultModelConfig
from extproc.routing.models import is_pattern

Json = dict[str, Any]

MODEL_HEADER = "x-llm-model"
POOL_HEADER = "x-llm-pool"
UNREADABLE = "-"
"""Value of ``x-llm-model`` if Envoy cannot read the request's body, because it is
encoded or too long."""
UNNAMED = "."
"""Value of ``x-llm-model`` if the body has no model or is not a JSON object."""
RETRY_ON = "connect-failure,refused-stream,reset-before-request"
"""Envoy's conditions for a retry of any request: the server has not seen it."""
ADAPTERS = ".*(/|%2[fF])(un)?load_lora_adapter(/|%2[fF])*"
"""RE2 expression for the paths below /v1 that make vLLM load or unload adapters."""
FORBIDDEN = (
    '{"error": {"message": "not open to clients", "type": "forbidden", "code": 403}}'
)
"""The answer to requests for the paths that make vLLM load or unload adapters."""
BUFFER_LIMIT_BYTES = 32 << 20
"""Maximum bytes of one request that Envoy buffers, as in envoy/envoy.yaml."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer to requests whose model is not in the fleet."""

    name: str
    model: str | None
    """Value of ``x-llm-model`` in the refused requests; None means any value."""
    message: str
    type: str
    status: int
    param: str | None = None

    @property
    def body(self) -> str:
        """Return the body of the answer, in the form of vLLM's errors."""
        param = {"param": self.param} if self.param else {}
        error = {"message": self.message, "type": self.type, **param}
        return json.dumps({"error": error | {"code": self.status}})


REFUSALS = (
    Refusal(
        "unreadable",
        UNREADABLE,
        "The model could not be read from the request. Please try again.",
        "ServiceUnavailableError",
        503,
    ),
    Refusal(
        "no_model_named",
        UNNAMED,
        "The request names no model.",
        "BadRequestError",
        400,
        "model",
    ),
    Refusal(
        "unknown_model",
        None,
        "The model does not exist.",
        "NotFoundError",
        404,
        "model",
    ),
)
"""The refusals in order of precedence; the last one matches every name."""


@dataclass(frozen=True, slots=True)
class Model:
    """A base model of a fleet."""

    name: str
    pools: Sequence[str]
    """Names of the model's pools; the pool with the largest window is last."""
    adapters: Sequence[str] = ()
    """Other names that clients use for the model, or glob patterns of such names."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names and patterns that clients use for the model."""
        return (self.name, *self.adapters)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The models behind a gateway."""

    models: Sequence[Model]
    """A single unnamed model for a configuration with ``pools``."""
    default: str | None = None
    """The model that serves requests for unknown models; None rejects them with vLLM's
    error."""

    @property
    def named(self) -> bool:
        """Return whether requests name a model, so that routes depend on it."""
        return any(model.name for model in self.models)

    @property
    def default_pool(self) -> str | None:
        """Return the largest pool of the default model; None without such a model."""
        return next((m.pools[-1] for m in self.models if m.name == self.default), None)

    @property
    def last_route(self) -> str:
        """Return the name of the last route, which checks no header."""
        return "no_model" if self.default is None else "default"

    @property
    def router_headers(self) -> list[str]:
        """Return the headers that only the router and its filters may set."""
        headers = [POOL_HEADER, "x-llm-budget", "x-llm-overflow", "x-llm-retry-cut"]
        return headers + ([MODEL_HEADER] if self.named else [])

    @property
    def models_list(self) -> str:
        """Return the answer to ``GET /v1/models``."""
        listed = [
            {"id": name, "object": "model", "owned_by": "vllm", "root": model.name}
            for model in self.models
            for name in model.names
            if not is_pattern(name)
        ]
        return json.dumps({"object": "list", "data": listed})


def fleet_of(config: Config) -> Fleet:
    """Return the fleet of a configuration."""
    if not config.models:
        return Fleet([Model("", [pool.name for pool in config.pools])], default="")
    unknown = config.unknown_model
    return Fleet(
        [
            Model(name, [pool.name for pool in model.pools], model.adapters)
            for name, model in config.models.items()
        ],
        unknown.default if isinstance(unknown, DefaultModelConfig) else None,
    )
