"""Which exchanges are looked at for their usage: dense while uncertain, then thin.

Looking at a response costs two gRPC messages and, for a stream, one a chunk, so it is
done where it teaches something: every response of a model until its estimate has
settled and of a category until it has been seen; a thin sample from then on, thicker
near a pool's limit, where an error moves a request; every response again when the
errors grow, as they do when another model comes up behind a name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from extproc.routing.router import Decision

MODEL_SAMPLES = 200
"""Responses of a model that are all looked at. The estimators' errors settle within
100 to 200 samples."""

CATEGORY_SAMPLES = 20
"""Responses of a category of a model that are all looked at."""

MEDIA_SAMPLES = 100
"""Responses with media of a model that are all looked at."""

_MEDIA = "media"
"""Where a category's name stands, of which there is none like it."""

SETTLED_RATE = 0.04
"""Share that is looked at right after; falls towards the floor as samples add up."""

NEAR_THRESHOLD = 0.25
"""Budgets within this share of a limit between two pools count as near it."""

NEAR_WEIGHT = 2.0

SILENT_LOOKS = 20
"""Looks at streams whose clients asked for no usage. A setting of vLLM
sends it all the same; if none of these had it, the setting is off."""

DRIFT_RATIO = 2.0
"""Recent errors above this multiple of the usual ones make a model uncertain again."""

DRIFT_FLOOR = 0.12
"""Recent errors below this are no drift, however small the usual ones are."""

_RECENT_SMOOTHING = 1 / 16
_USUAL_SMOOTHING = 1 / 64
_MAX_KEYS = 1024
"""Models and their categories remembered; the names are clients' text."""

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
    """The responses observed so far; a sampler with other limits goes on with it."""

    models: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    categories: OrderedDict[tuple[str, str], int] = field(default_factory=OrderedDict)
    position: float = 0.0
    silent_looks: int = 0
    silent_samples: int = 0


class FeedbackSampler:
    """Chooses the exchanges to observe.

    Args:
        floor: the least share of the exchanges that is looked at, 0 to 1.
        adaptive: whether uncertainty raises it; else the share is ``floor``.
        limits: the budgets, in tokens, at which one pool ends and the next begins, by
            the base model (``Pool.model``).
        history: of a sampler before it; None to begin with none.

    Deterministic: the k-th exchange is chosen if ``frac(k * golden ratio)`` falls
    below the rate, which spreads the choices evenly and keeps in step with no
    periodic traffic.
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
        """Whether this decision's response is to be observed."""
        history = self.history
        history.position = (history.position + _GOLDEN) % 1.0
        wanted = history.position < self.rate(decision)
        history.silent_looks += wanted and decision.usage_not_requested
        return wanted

    def rate(self, decision: Decision) -> float:
        """The share of decisions like this one that are observed."""
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
        """Note that a response was learned from.

        Args:
            decision: what was decided.
            error_ratio: the estimate's relative error, whose growth tells of drift.
        """
        self.history.silent_samples += decision.usage_not_requested
        if decision.media:  # apart from the errors of text
            key = (decision.model, _MEDIA)
            _bump(self.history.categories, key, self.history.categories.get(key, 0) + 1)
            return
        key = (decision.model, decision.category)
        _bump(self.history.categories, key, self.history.categories.get(key, 0) + 1)
        model = self.history.models.get(decision.model) or _Known()
        _bump(self.history.models, decision.model, model)
        error = min(abs(error_ratio), 0.5)  # one wild count is not yet a drift
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
