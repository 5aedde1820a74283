"""The documents of /status, for one server or merged from several workers.

Shares, ratios and errors are fractions; tokens and bytes are counts. The documents
contain only numbers and names from the configuration, never text of a request or a
model name written by a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, Struct, UnsetType

from extproc.routing.advice import Advice
from extproc.routing.decision import DecisionFields


class CurveReport(Struct, frozen=True):
    """The course of a value since the start, in evenly spaced points."""

    spacing: int
    """Number of values from one point to the next."""
    points: Sequence[float]


class CategoryReport(Struct, frozen=True):
    """Decisions and learning of a category; fields are unset before any lesson."""

    decisions: int
    observed: int | UnsetType = UNSET
    """Responses learned from."""
    bytes_per_token: float | UnsetType | None = UNSET
    mean_absolute_error: float | UnsetType | None = UNSET
    """Decayed mean of |estimated - counted| / counted prompt tokens."""
    bias: float | UnsetType | None = UNSET
    """Decayed mean of the signed error, (estimated - counted) / counted."""
    bytes_per_token_curve: CurveReport | UnsetType = UNSET
    error_curve: CurveReport | UnsetType = UNSET


class RiskReport(Struct, frozen=True):
    """Stated and recent risk; risk is the share of prompts above their bound."""

    stated: float | None
    """Risk that the estimator states, or None if it states none."""
    observed: int
    exceeded: int
    achieved: float | None
    """``exceeded / observed``, or None if nothing was observed."""


class IntervalReport(Struct, frozen=True):
    """Counts in one interval, and quantiles of the time to answer a message."""

    time_s: float
    """End of the interval, in seconds since the epoch."""
    pools: Mapping[str, int]
    """Number of decisions by pool."""
    spilled: int
    failed_open: int
    observed: int
    """Number of prompts with a known error."""
    absolute_error: float
    """Sum of |estimated - counted| / counted over ``observed``."""
    exceeded: int
    """Number of prompts above their bound."""
    p50_s: float | None
    p99_s: float | None


class RouterReport(Struct, frozen=True):
    """Load of the server itself, as opposed to its pools."""

    streams: int
    """Number of open ext_proc streams."""
    faults: int
    protocol_errors: int
    p50_s: float | None
    p99_s: float | None
    """99th percentile of the time to answer a message in the last fifteen minutes."""


class BodiesReport(Struct, frozen=True):
    """Request bodies that the router has asked Envoy for."""

    lost: int
    """Number of requested bodies that did not arrive."""
    requested_bytes: int
    """Size of the largest body to request, in bytes."""
    limited: bool
    """Whether lost bodies have lowered ``requested_bytes`` below the configured
    limit."""


class EndpointReport(Struct, frozen=True):
    """A vLLM server of a pool."""

    name: str
    healthy: bool
    waiting: float | None
    """Number of requests in the server's queue. This field and the next two are None
    without a recent answer."""
    running: float | None
    kv_cache_usage: float | None
    """Share of the KV cache in use, 0 to 1."""
    max_model_len: int | None
    """Token limit that the server reports."""


class PoolReport(Struct, frozen=True):
    """A pool with its share of the decisions and its load."""

    name: str
    max_model_len: int
    threshold_tokens: int
    decisions: int
    share: float | None
    available: bool
    under_pressure: bool
    endpoints: Sequence[EndpointReport] = ()
    model: str | UnsetType = UNSET
    """Base model that the pool serves, if models are configured."""


class BudgetsReport(Struct, frozen=True):
    """The distribution of the decided budgets."""

    thresholds: Sequence[int]
    shares: Sequence[float]
    """Share of the budgets in each bin. Each bin ends at a threshold, except the last,
    which has the budgets above all thresholds."""
    requests: float
    """Decayed number of requests."""
    token_shares: Sequence[float]
    """Share of all budgeted tokens in each of the same bins."""


class ModelReport(Struct, frozen=True):
    """A base model, or ``other`` for all models that are not configured."""

    name: str
    pools: Sequence[str]
    decisions: int
    share: float | None
    """Share of all decisions."""
    observed: int
    """Responses learned from."""
    mean_absolute_error: float | None
    """Decayed mean of |estimated - counted| / counted prompt tokens."""
    bias: float | None
    risk: RiskReport
    budgets: BudgetsReport
    advice: Advice | None


class DecisionReport(DecisionFields, frozen=True, gc=False, kw_only=True):
    """A recent decision."""

    time_s: float
    """Time of the decision in seconds since the epoch."""
    budget_tokens: int
    counted_tokens: int | None
    """Prompt tokens that the backend counted, or None until a response is observed."""


class WorkerReport(Struct, frozen=True):
    """One of several workers; fields are None if the worker does not answer."""

    worker: int
    listen: str
    pid: int | None
    restarts: int
    ready: bool
    uptime_s: float | None
    decisions: int | None


class StatusReport(Struct, frozen=True):
    """The state of one server, or the merged state of all workers."""

    version: str
    ready: bool
    mode: str
    uptime_s: float
    estimator: str
    decisions: int
    pools: Sequence[PoolReport]
    reasons: Mapping[str, int]
    categories: Mapping[str, CategoryReport]
    bytes_per_token: Mapping[str, float]
    risk: RiskReport
    observations: Mapping[str, int]
    misroutes: Mapping[str, int]
    overflow_retries: int
    budgets: BudgetsReport
    advice: Advice | None
    last_decisions: Sequence[DecisionReport]
    """Recent decisions, newest first."""
    router: RouterReport
    bodies: BodiesReport
    intervals: Sequence[IntervalReport]
    """The last fifteen minutes, oldest interval first."""
    models: Sequence[ModelReport] | UnsetType = UNSET
    """Set if models are configured. Then ``budgets`` and ``advice`` describe the model
    with the most requests."""
    workers: Sequence[WorkerReport] | UnsetType = UNSET
    """Set if the report merges several workers."""


class NoWorkerReport(Struct, frozen=True):
    """The report if no worker answers."""

    workers: Sequence[WorkerReport]
    ready: bool = False
