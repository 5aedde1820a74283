"""The last decisions and the course of learning over time, which no metric contains.

All values are numbers, so no text, model name, path or client identity is stored. The
number of categories limits the memory. Recording a decision takes one append to a list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from msgspec.structs import astuple

from extproc.exchange.events import Observation
from extproc.routing.decision import decision_fields
from extproc.routing.router import Decision, Lesson
from extproc.server.in_force import InForce
from extproc.server.observe.report import (
    CategoryReport,
    CurveReport,
    DecisionReport,
    RiskReport,
)

LAST_DECISIONS = 50
CURVE_POINTS = 64
"""Minimum number of points of a full curve; the maximum is twice as many."""

RISK_WINDOW = 2000
"""Number of observed prompts from which the achieved risk is computed. At a risk of 1
%, about 20 of these prompts exceed their bound, give or take 4."""

_ERROR_SMOOTHING = 0.98


class Curve:
    """The whole course of a value, in a limited number of evenly spaced points.

    When the curve is full, every other point is dropped and the spacing doubles. The
    first samples, which show the learning, therefore remain visible.
    """

    def __init__(self, points: int = CURVE_POINTS) -> None:
        self._limit = 2 * points
        self._spacing = 1
        self._seen = 0
        self._points: list[float] = []

    def add(self, value: float) -> None:
        """Add the next value."""
        if self._seen % self._spacing == 0:
            if len(self._points) == self._limit:
                self._points = self._points[::2]
                self._spacing *= 2
            self._points.append(value)
        self._seen += 1

    def report(self) -> CurveReport:
        """Report the points, rounded to four digits."""
        points = [float(f"{value:.4g}") for value in self._points]
        return CurveReport(self._spacing, points)


@dataclass(slots=True)
class _Mean:
    """A decayed mean that is unbiased from the first sample."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> float:
        self.total = _ERROR_SMOOTHING * self.total + value
        self.weight = _ERROR_SMOOTHING * self.weight + 1.0
        return self.total / self.weight

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass(slots=True)
class _Category:
    observed: int = 0
    absolute_error: _Mean = field(default_factory=_Mean)
    bias: _Mean = field(default_factory=_Mean)
    ratio_curve: Curve = field(default_factory=Curve)
    error_curve: Curve = field(default_factory=Curve)


@dataclass(frozen=True, slots=True)
class LearningTotals:
    """Totals of learning since the start."""

    observed: int = 0
    """Number of prompts with a known error."""
    absolute_error: float = 0.0
    """Sum of |estimated - counted| / counted."""
    exceeded: int = 0
    """Number of prompts above their bound."""


@dataclass(slots=True)
class _Model:
    observed: int = 0
    absolute_error: _Mean = field(default_factory=_Mean)
    bias: _Mean = field(default_factory=_Mean)
    exceeded: deque[bool] = field(default_factory=lambda: deque(maxlen=RISK_WINDOW))


@dataclass(frozen=True, slots=True)
class ModelCourse:
    """The course of learning for one model."""

    observed: int
    mean_absolute_error: float | None
    bias: float | None
    risk: RiskReport


class RecentDecisions:
    """Records decisions and observations.

    Args:
        in_force: holder of the router. The curves show the learned ratios of this
            router.
        clock: seconds since the epoch.
    """

    def __init__(self, in_force: InForce, clock: Callable[[], float]) -> None:
        self._in_force = in_force
        self._clock = clock
        self._categories: dict[str, _Category] = {}
        self._models: dict[str, _Model] = {}
        self._last: deque[tuple[float, Decision]] = deque(maxlen=LAST_DECISIONS)
        self._counted: deque[tuple[Decision, int]] = deque(maxlen=LAST_DECISIONS)
        self._exceeded: deque[bool] = deque(maxlen=RISK_WINDOW)
        self.totals = LearningTotals()

    def decided(self, decision: Decision) -> None:
        """Record a decision."""
        self._last.append((self._clock(), decision))

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Record a response and the lesson learned from it."""
        decision = observation.decision
        counted = observation.outcome.prompt_tokens
        if counted:
            self._counted.append((decision, counted))
        if lesson.error_ratio is not None:
            self._exceeded.append(lesson.under_estimated)
            self.totals = LearningTotals(
                self.totals.observed + 1,
                self.totals.absolute_error + abs(lesson.error_ratio),
                self.totals.exceeded + lesson.under_estimated,
            )
            self._learned(decision.category, lesson.error_ratio)
            if decision.base_model:
                model = self._models.setdefault(decision.base_model, _Model())
                model.observed += 1
                model.bias.add(lesson.error_ratio)
                model.absolute_error.add(abs(lesson.error_ratio))
                model.exceeded.append(lesson.under_estimated)

    def _learned(self, name: str, error_ratio: float) -> None:
        category = self._categories.setdefault(name, _Category())
        category.observed += 1
        category.bias.add(error_ratio)
        category.error_curve.add(category.absolute_error.add(abs(error_ratio)))
        ratio = self._ratio(name)
        if ratio is not None:
            category.ratio_curve.add(ratio)

    def _ratio(self, category: str) -> float | None:
        return self._in_force.now.router.ratios.bytes_per_token(category)

    def categories(self, decisions: Mapping[str, int]) -> dict[str, CategoryReport]:
        """Report each category with a decision or a lesson.

        Args:
            decisions: number of decisions by category.
        """
        return {
            name: self._report_category(name, decisions.get(name, 0))
            for name in sorted({*decisions, *self._categories})
        }

    def last_decisions(self) -> list[DecisionReport]:
        """Report recent decisions, newest first, with the counted tokens if known."""
        counted = {id(decision): tokens for decision, tokens in self._counted}
        return [
            _report_decision(time_s, decision, counted.get(id(decision)))
            for time_s, decision in reversed(self._last)
        ]

    def risk(self, stated: float | None) -> RiskReport:
        """Report the share of recent counted prompts that exceeded their bound."""
        return _report_risk(stated, self._exceeded)

    def model(self, name: str, stated: float | None) -> ModelCourse:
        """Report the course of learning for a model."""
        model = self._models.get(name, _Model())
        return ModelCourse(
            model.observed,
            model.absolute_error.value,
            model.bias.value,
            _report_risk(stated, model.exceeded),
        )

    def _report_category(self, name: str, decisions: int) -> CategoryReport:
        category = self._categories.get(name)
        if category is None:
            return CategoryReport(decisions)
        return CategoryReport(
            decisions,
            category.observed,
            self._ratio(name),
            category.absolute_error.value,
            category.bias.value,
            category.ratio_curve.report(),
            category.error_curve.report(),
        )


def _report_risk(stated: float | None, exceeded: Collection[bool]) -> RiskReport:
    observed, above = len(exceeded), sum(exceeded)
    return RiskReport(stated, observed, above, above / observed if observed else None)


def _report_decision(
    time_s: float, decision: Decision, counted_tokens: int | None
) -> DecisionReport:
    return DecisionReport(
        *astuple(decision_fields(decision)),
        time_s=round(time_s, 3),
        budget_tokens=decision.budget_tokens,
        counted_tokens=counted_tokens,
    )
