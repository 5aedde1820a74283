"""Settings of the pools and of their load limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from extproc.config.accepted import BASE_URLS, FILE, NAME, POSITIVE
from extproc.schema import check


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool of vLLM instances."""

    name: str = field(metadata=NAME)
    """Value of the `x-llm-pool` header for this pool."""
    max_model_len: int = field(metadata=POSITIVE)
    """Value of vLLM's `--max-model-len` in this pool."""
    threshold_tokens: int | None = field(default=None, metadata=POSITIVE)
    """Largest budget routed to this pool; unset: `max_model_len`."""
    endpoints: tuple[str, ...] = field(default=(), metadata=BASE_URLS)
    """Base URLs of the vLLM servers, to poll for load and limits. A name with several
    addresses counts as several servers. Unset: no polling."""
    api_key_file: str | None = field(default=None, metadata=FILE)
    """File with the API key that the servers require (vLLM's `--api-key`). Read before
    each request."""


DEFAULT_POOLS = (PoolConfig("short", 8192), PoolConfig("long", 65536))


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """Load at which a pool is under pressure, so that requests spill over."""

    interval_s: float = field(default=1.0, metadata=POSITIVE)
    """Seconds between two polls of an endpoint's `/metrics`."""
    stale_after_s: float = field(default=5.0, metadata=POSITIVE)
    """Seconds after which a reported load is ignored, so that the pool's pressure is
    unknown."""
    waiting_requests: float = field(default=8.0, metadata=POSITIVE)
    """Mean number of waiting requests per endpoint at which pressure starts."""
    kv_cache_usage: float = field(
        default=0.97, metadata=check("above 0, at most 1", lambda value: 0 < value <= 1)
    )
    """Mean share of the KV cache in use at which pressure starts."""
    relief: float = field(
        default=0.5, metadata=check("between 0 and 1", lambda value: 0 <= value < 1)
    )
    """Pressure ends once both values are at or below this share of their thresholds."""
