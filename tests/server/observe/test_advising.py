"""The advisor counts requests, and status and metrics show its advice."""

from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry

from extproc.exchange.events import Observation
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.router import Decision, Lesson, Outcome, Router, Skipped
from extproc.server.in_force import InForce
from extproc.server.observe.advising import Advisor, advise_now, report_budgets
from extproc.server.observe.gauges import InForceCollector

from ..in_force import make_in_force

SHORT, LONG = Pool("short", 8192, 8192), Pool("long", 65536, 65536)


def make_decision(bound_tokens: int) -> Decision:
    return Decision(
        SHORT,
        Reason.WITHIN_THRESHOLD,
        prompt_tokens=bound_tokens,
        bound_tokens=bound_tokens,
        output_tokens=100,
        declared=True,
    )


def in_force_of(*pools: Pool) -> InForce:
    return make_in_force(Router(Policy(pools), Bounded(TextEma()), TextRatios()))


def watch(advisor: Advisor, bound_tokens: int, counted: int, number: int) -> None:
    for _ in range(number):
        decision = make_decision(bound_tokens)
        advisor.decided(decision)
        outcome = Outcome(200, counted, 10)
        advisor.observed(Observation(decision, outcome), Lesson(error_ratio=0.0))


def test_advises_once_it_has_seen_enough() -> None:
    in_force = in_force_of(SHORT, LONG)
    advisor = Advisor(in_force)
    assert advise_now(in_force.now)[""] is None
    watch(advisor, 300, 290, 400)
    watch(advisor, 900, 2000, 100)
    advice = advise_now(in_force.now)[""]
    assert advice is not None
    assert advice.best.threshold_tokens == 1024
    assert advice.best.under_rate == pytest.approx(0.2, abs=0.01)
    assert advice.current.under_rate == pytest.approx(0, abs=1e-9)


def test_what_was_not_estimated_or_learned_does_not_count() -> None:
    in_force = in_force_of(SHORT, LONG)
    advisor = Advisor(in_force)
    for _ in range(300):
        advisor.decided(Decision(LONG, Reason.TOO_LARGE))
        observation = Observation(make_decision(100), Outcome(503))
        advisor.observed(observation, Lesson(Skipped.STATUS))
    assert advise_now(in_force.now)[""] is None
    assert sum(report_budgets(in_force.now.budgets[""]).shares) == 0


def test_one_pool_has_nothing_to_split() -> None:
    in_force = in_force_of(LONG)
    advisor = Advisor(in_force)
    watch(advisor, 300, 290, 300)
    assert advise_now(in_force.now)[""] is None
    assert max(report_budgets(in_force.now.budgets[""]).shares) == 1


def test_metrics_hold_the_advice() -> None:
    in_force = in_force_of(SHORT, LONG)
    advisor = Advisor(in_force)
    registry = CollectorRegistry()
    registry.register(InForceCollector(in_force))

    def value(name: str, labels: Mapping[str, str] | None = None) -> float | None:
        return registry.get_sample_value(name, dict(labels or {}))

    assert value("extproc_advised_threshold_tokens") is None
    watch(advisor, 300, 290, 300)
    assert value("extproc_advised_threshold_tokens") == 1024
    current = {"threshold": "current"}
    saving = value("extproc_threshold_saving_ratio", current)
    assert saving == pytest.approx(0.38, abs=0.01)
    assert value("extproc_threshold_exceeded_ratio", current) == 0
