"""The documents of /status: what one server reports, and several workers merged.

Shares, ratios and errors are fractions, tokens and bytes are counts. Numbers and names
of the configuration only: no text of a request, no model name that a client wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, Struct, UnsetType

from extproc.routing.advice import Advice
from extproc.routing.decision import DecisionFields


class CurveReport(Struct, frozen=True):
    """A value's course since the start, in evenly spaced points."""

    spacing: int
    """Values from one point to the next."""
    points: Sequence[float]


class CategoryReport(Struct, frozen=True):
    """What was decided and learned of a category; unset: nothing was learned of it."""

    decisions: int
    observed: int | UnsetType = UNSET
    """Responses that were learned from."""
    bytes_per_token: float | UnsetType | None = UNSET
    mean_absolute_error: float | UnsetType | None = UNSET
    """Of (estimated - counted) / counted prompt tokens, decayed."""
    bias: float | UnsetType | None = UNSET
    """The mean of the same with its sign."""
    bytes_per_token_curve: CurveReport | UnsetType = UNSET
    error_curve: CurveReport | UnsetType = UNSET


class RiskReport(Struct, frozen=True):
    """Prompts above their bound: the stated share, and the recent one."""

    stated: float | None
    """None for an estimator that states no risk."""
    observed: int
    exceeded: int
    achieved: float | None
    """``exceeded / observed``; None if nothing was observed."""


class IntervalReport(Struct, frozen=True):
    """Counts of one interval, and quantiles of the time to answer a message."""

    time_s: float
    """The end, in seconds since the epoch."""
    pools: Mapping[str, int]
    """Decisions by pool."""
    spilled: int
    failed_open: int
    observed: int
    """Prompts whose error is known."""
    absolute_error: float
    """Sum of |estimated - counted| / counted over ``observed``."""
    exceeded: int
    """Prompts above their bound."""
    p50_s: float | None
    p99_s: float | None


class RouterReport(Struct, frozen=True):
    """The server's own work."""

    streams: int
    """ext_proc streams that are open."""
    faults: int
    protocol_errors: int
    p50_s: float | None
    p99_s: float | None
    """Of the time to answer a message, over the last fifteen minutes."""


class BodiesReport(Struct, frozen=True):
    """Bodies that Envoy was asked for."""

    lost: int
    """It did not hand them over."""
    requested_bytes: int
    """The largest that it is asked for."""
    limited: bool
    """Whether that is less than configured, after bodies were lost."""


class EndpointReport(Struct, frozen=True):
    """One vLLM server of a pool."""

    name: str
    healthy: bool
    waiting: float | None
    """Requests in its queue; None without a fresh answer, as the next two."""
    running: float | None
    kv_cache_usage: float | None
    """0 to 1."""
    max_model_len: int | None
    """As the server reports it."""


class PoolReport(Struct, frozen=True):
    """A pool, its share of the decisions and its load."""

    name: str
    max_model_len: int
    threshold_tokens: int
    decisions: int
    share: float | None
    available: bool
    under_pressure: bool
    endpoints: Sequence[EndpointReport] = ()
    model: str | UnsetType = UNSET
    """The base model that it serves, if models are configured."""


class BudgetsReport(Struct, frozen=True):
    """The distribution of the budgets decided."""

    thresholds: Sequence[int]
    shares: Sequence[float]
    """Of the budgets up to each threshold, then above the last."""
    requests: float
    """Decayed."""
    token_shares: Sequence[float]
    """Of the budgets' tokens, by the same bins."""


class ModelReport(Struct, frozen=True):
    """One base model, or ``other``: the models that are not configured."""

    name: str
    pools: Sequence[str]
    decisions: int
    share: float | None
    """Of all decisions."""
    observed: int
    """Responses that were learned from."""
    mean_absolute_error: float | None
    """Of (estimated - counted) / counted prompt tokens, decayed."""
    bias: float | None
    risk: RiskReport
    budgets: BudgetsReport
    advice: Advice | None


class DecisionReport(DecisionFields, frozen=True, gc=False, kw_only=True):
    """One recent decision."""

    time_s: float
    """Seconds since the epoch."""
    budget_tokens: int
    counted_tokens: int | None
    """Prompt tokens by the backend's count; None until a response was observed."""


class WorkerReport(Struct, frozen=True):
    """One of several workers; None: it gave no answer."""

    worker: int
    listen: str
    pid: int | None
    restarts: int
    ready: bool
    uptime_s: float | None
    decisions: int | None


class StatusReport(Struct, frozen=True):
    """The state of a server."""

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
    """The newest first."""
    router: RouterReport
    bodies: BodiesReport
    intervals: Sequence[IntervalReport]
    """The last fifteen minutes, the oldest first."""
    models: Sequence[ModelReport] | UnsetType = UNSET
    """Set if models are configured; ``budgets`` and ``advice`` are of the busiest."""
    workers: Sequence[WorkerReport] | UnsetType = UNSET
    """Set if several workers were merged."""


class NoWorkerReport(Struct, frozen=True):
    """The report while no worker answers."""

    workers: Sequence[WorkerReport]
    ready: bool = False
