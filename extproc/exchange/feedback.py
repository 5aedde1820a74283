"""Choose the responses to observe: many while estimates are uncertain, then few.

Observing a response costs two gRPC messages, and one more for each chunk of a stream.
So the router observes the responses from which it learns most: all responses of a model
until the model's estimate has settled, and all responses of a category until enough of
them are known. After that, it observes a small sample, which is larger near a pool's
limit, where an error changes a request's pool. It observes all responses again if the
errors grow, for example because another model was deployed under the same name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from extproc.routing.router import Decision

MODEL_SAMPLES = 200
"""Number of first responses of a model that are all observed. The estimators' errors
settle within 100 to 200 samples."""

CATEGORY_SAMPLES = 20
"""Number of first responses of each category of a model that are all observed."""

MEDIA_SAMPLES = 100
"""Number of first responses to a model's media requests that are all observed."""

_MEDIA = "media"
"""Key of the media samples; no category has this name."""

SETTLED_RATE = 0.04
"""Share of responses observed after those first ones. It falls toward the floor as
samples accumulate."""

NEAR_THRESHOLD = 0.25
"""A budget is near the limit between two pools if it differs from the limit by at most
this share of the limit."""

NEAR_WEIGHT = 2.0

SILENT_LOOKS = 20
"""Number of streams to observe although their clients requested no usage. vLLM can be
configured to send usage regardless; if none of these streams has usage, the server is
assumed not to send it."""

DRIFT_RATIO = 2.0
"""A model is uncertain again if recent errors exceed the usual ones by this factor."""

DRIFT_FLOOR = 0.12
"""Recent errors below this never count as drift, however small the usual errors are."""

_RECENT_SMOOTHING = 1 / 16
_USUAL_SMOOTHING = 1 / 64
_MAX_KEYS = 1024
"""Maximum number of remembered models and categories, because clients choose the
names."""

_GOLDEN = 0.6180339887498949

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class _Known:
    samples: int = 0
    recent_error: float = 0.0
    usual_error: float = 0.0


@dataclass(slots=True)
class SamplingHistory:
    """The responses observed so far, kept when a new sampler replaces the old one."""

    models: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    categories: OrderedDict[tuple[str, str], int] = field(default_factory=OrderedDict)
    position: float = 0.0
    silent_looks: int = 0
    silent_samples: int = 0


class FeedbackSampler:
    """Chooses the exchanges to observe.

    Args:
        floor: the minimum share of exchanges to observe, 0 to 1.
        adaptive: whether uncertainty raises the share; if not, the share is ``floor``.
        limits: the budgets, in tokens, at which one pool ends and the next starts, by
            base model (``Pool.model``).
        history: the history of the previous sampler; None starts an empty history.

    Deterministic: the k-th exchange is chosen if ``frac(k * golden ratio)`` is below
    the rate. This spreads the choices evenly and does not align with periodic traffic.
    """

    def __init__(
        self,
        floor: float,
        *,
        adaptive: bool = True,
        limits: Mapping[str, Sequence[int]] | None = None,
        history: SamplingHistory | None = None,
    ) -> None:
        self.limits = limits or {}
        self.history = history or SamplingHistory()
        self._floor = floor
        self._adaptive = adaptive

    def wants(self, decision: Decision) -> bool:
        """Whether to observe the response to this decision."""
        history = self.history
        history.position = (history.position + _GOLDEN) % 1.0
        wanted = history.position < self.rate(decision)
        history.silent_looks += wanted and decision.usage_not_requested
        return wanted

    def rate(self, decision: Decision) -> float:
        """The share of similar decisions to observe."""
        teaches = decision.features is not None or bool(decision.media)
        barren = not teaches or (
            decision.usage_not_requested
            and self.history.silent_samples == 0
            and self.history.silent_looks >= SILENT_LOOKS
        )
        if barren or not self._adaptive:
            return self._floor
        if decision.media:
            samples = self.history.categories.get((decision.model, _MEDIA), 0)
            return 1.0 if samples < MEDIA_SAMPLES else max(self._floor, SETTLED_RATE)
        model = self.history.models.get(decision.model)
        if model is None or model.samples < MODEL_SAMPLES:
            return 1.0
        key = (decision.model, decision.category)
        if self.history.categories.get(key, 0) < CATEGORY_SAMPLES:
            return 1.0
        rate = max(self._floor, SETTLED_RATE * MODEL_SAMPLES / model.samples)
        budget = decision.bound_budget_tokens
        for limit in self.limits.get(decision.pool.model, ()):
            if abs(budget - limit) <= NEAR_THRESHOLD * limit:
                return rate * NEAR_WEIGHT
        return rate

    def observed(self, decision: Decision, error_ratio: float) -> None:
        """Record that a response was learned from.

        Args:
            decision: the decision.
            error_ratio: the estimate's relative error; its growth indicates drift.
        """
        self.history.silent_samples += decision.usage_not_requested
        if decision.media:  # media are counted separately from the errors of text
            key = (decision.model, _MEDIA)
            _bump(self.history.categories, key, self.history.categories.get(key, 0) + 1)
            return
        key = (decision.model, decision.category)
        _bump(self.history.categories, key, self.history.categories.get(key, 0) + 1)
        model = self.history.models.get(decision.model) or _Known()
        _bump(self.history.models, decision.model, model)
        error = min(abs(error_ratio), 0.5)  # a single outlier is not drift
        model.samples += 1
        first = 1.0 / model.samples
        model.recent_error += max(first, _RECENT_SMOOTHING) * (
            error - model.recent_error
        )
        drifted = model.samples >= MODEL_SAMPLES and model.recent_error > max(
            DRIFT_FLOOR, DRIFT_RATIO * model.usual_error
        )
        if drifted:
            model.samples = 0
        model.usual_error += max(first, _USUAL_SMOOTHING) * (error - model.usual_error)


def _bump(table: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MAX_KEYS:
        table.popitem(last=False)
