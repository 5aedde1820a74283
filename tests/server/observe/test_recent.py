"""The latest decisions, the learning curve, and the risk that was achieved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.events import Observation
from extproc.routing.bound import Bounded
from extproc.routing.features import measure
from extproc.routing.policy import Policy, Pool, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.request import Prompt
from extproc.routing.router import Decision, Lesson, Outcome, Router, Skipped
from extproc.server.observe.recent import (
    CURVE_POINTS,
    LAST_DECISIONS,
    Curve,
    RecentDecisions,
)
from extproc.server.observe.report import CurveReport, DecisionReport, RiskReport

from ..in_force import make_in_force

POOL = Pool("short", 8192, 8192)


def make_decision(category: str = "prose", prompt_tokens: int = 100) -> Decision:
    return Decision(
        POOL,
        Reason.WITHIN_THRESHOLD,
        category,
        model="client text",
        body_bytes=400,
        prompt_tokens=prompt_tokens,
        bound_tokens=120,
        output_tokens=64,
        declared=True,
        features=measure(Prompt(b"text"), 400),
    )


class FixedRatios(TextRatios):
    def bytes_per_token(self, category: str) -> float | None:
        return {"prose": 4.25}.get(category)


def make_history() -> RecentDecisions:
    in_force = make_in_force(Router(Policy([POOL]), Bounded(TextEma()), FixedRatios()))
    return RecentDecisions(in_force, lambda: 1000.0)


@given(st.lists(st.floats(0, 100), max_size=1500))
def test_a_curve_spans_everything_in_bounded_room(values: list[float]) -> None:
    curve = Curve()
    for value in values:
        curve.add(value)
    report = curve.report()
    points, spacing = report.points, report.spacing
    assert len(points) <= 2 * CURVE_POINTS
    expected = values[::spacing]
    assert np.allclose(points, expected, rtol=1e-3)
    assert len(values) <= 2 * CURVE_POINTS or len(points) >= CURVE_POINTS


def test_last_decisions_come_newest_first_and_without_text() -> None:
    history = make_history()
    for number in range(LAST_DECISIONS + 5):
        history.decided(make_decision(prompt_tokens=number))
    recent = history.last_decisions()
    assert len(recent) == LAST_DECISIONS
    assert [entry.prompt_tokens for entry in recent[:2]] == [54, 53]
    assert recent[0] == DecisionReport(
        time_s=1000.0,
        pool="short",
        category="prose",
        reason=Reason.WITHIN_THRESHOLD,
        body_bytes=400,
        prompt_tokens=54,
        bound_tokens=120,
        output_tokens=64,
        declared=True,
        budget_tokens=118,
        counted_tokens=None,
    )


def test_a_response_completes_its_own_decision() -> None:
    history = make_history()
    first, second = make_decision(), make_decision()
    history.decided(first)
    history.decided(second)
    history.observed(Observation(first, Outcome(200, 91)), Lesson(error_ratio=0.1))
    assert [e.counted_tokens for e in history.last_decisions()] == [None, 91]


def test_learning_holds_ratio_and_error_by_category() -> None:
    history = make_history()
    for error in (0.5, -0.1):
        observation = Observation(make_decision(), Outcome(200, 91))
        history.observed(observation, Lesson(error_ratio=error))
    prose = history.categories({})["prose"]
    assert prose.observed == 2
    assert prose.bytes_per_token == 4.25
    assert prose.bytes_per_token_curve == CurveReport(1, [4.25, 4.25])
    assert isinstance(prose.error_curve, CurveReport)
    first, second = prose.error_curve.points
    assert first == 0.5
    assert 0.29 < second < 0.31
    assert prose.bias == pytest.approx(0.197, abs=0.01)


def test_risk_counts_only_what_could_be_judged() -> None:
    history = make_history()
    assert history.risk(0.01).achieved is None
    judged = Observation(make_decision(), Outcome(200, 130))
    for exceeded in (True, False, False, False):
        history.observed(judged, Lesson(error_ratio=0.0, under_estimated=exceeded))
    failed = Observation(make_decision(), Outcome(503))
    history.observed(failed, Lesson(Skipped.STATUS))
    assert history.risk(0.01) == RiskReport(0.01, 4, 1, 0.25)
