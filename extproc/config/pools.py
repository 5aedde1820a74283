"""Settings of the pools, and of when one is under pressure."""

from __future__ import annotations

from dataclasses import dataclass, field

from extproc.config.accepted import BASE_URLS, FILE, NAME, POSITIVE
from extproc.schema import check


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool of vLLM instances."""

    name: str = field(metadata=NAME)
    """The value of the `x-llm-pool` header."""
    max_model_len: int = field(metadata=POSITIVE)
    """vLLM's `--max-model-len` in this pool."""
    threshold_tokens: int | None = field(default=None, metadata=POSITIVE)
    """Budgets up to and including it go here; unset: `max_model_len`."""
    endpoints: tuple[str, ...] = field(default=(), metadata=BASE_URLS)
    """The vLLM servers, to ask for their load and limits: of a name with several
    addresses, each. Unset: they are not asked."""
    api_key_file: str | None = field(default=None, metadata=FILE)
    """Contains the key that the servers require (vLLM's `--api-key`). Read before each
    request."""


DEFAULT_POOLS = (PoolConfig("short", 8192), PoolConfig("long", 65536))


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """When a pool counts as under pressure, so that requests spill to a larger one."""

    interval_s: float = field(default=1.0, metadata=POSITIVE)
    """Between two questions to an endpoint's `/metrics`."""
    stale_after_s: float = field(default=5.0, metadata=POSITIVE)
    """Older answers do not count: the pool's pressure is then not known."""
    waiting_requests: float = field(default=8.0, metadata=POSITIVE)
    """In an endpoint's queue, on average: from there on there is pressure."""
    kv_cache_usage: float = field(
        default=0.97, metadata=check("above 0, at most 1", lambda value: 0 < value <= 1)
    )
    """Share of the KV cache in use, on average, from which there is pressure."""
    relief: float = field(
        default=0.5, metadata=check("between 0 and 1", lambda value: 0 <= value < 1)
    )
    """Pressure ends where both are at or below this share of their limit."""
