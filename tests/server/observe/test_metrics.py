import itertools

import pytest
from prometheus_client import generate_latest

from extproc.config import CategoryConfig, Config
from extproc.exchange.events import Observation, Serving
from extproc.routing.policy import Reason
from extproc.routing.router import Decision, Lesson, Misroute, Outcome, Skipped
from extproc.server.observe.metrics import Metrics
from extproc.server.services.access_log import Entry

from ..in_force import make_router

ROUTER = make_router(Config(category=CategoryConfig(hints=("legal",))))
SHORT, LONG = ROUTER.policy.pools
DECISION = Decision(SHORT, Reason.WITHIN_THRESHOLD, "prose", prompt_tokens=100)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_labels_are_closed(metrics: Metrics) -> None:
    """The sets of pools, categories and reasons limit the number of time series."""
    for pool, category, reason in itertools.product(
        ROUTER.policy.pools, ROUTER.categories, Reason
    ):
        decision = Decision(pool, reason, category, model="anything at all")
        metrics.decided(decision)
        for skipped in (None, *Skipped):
            for misroute in (None, *Misroute):
                lesson = Lesson(skipped, 0.1, True, misroute)
                metrics.observed(Observation(decision, Outcome(200)), lesson)
        serving = Serving("vllm_long", 0.1)
        metrics.observed(Observation(decision, Outcome(200), serving), Lesson())
    for entry in Entry:
        metrics.access_log_entries.add(entry)

    labels: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            for name, of in sample.labels.items():
                labels.setdefault(name, set()).add(of)
    del labels["le"], labels["version"]
    assert labels == {
        "pool": {"short", "long"},
        "category": set(ROUTER.categories),
        "reason": set(Reason),
        "result": {"learned", *Skipped, *Entry},
        "cluster": {"vllm_long"},
        "kind": set(Misroute),
    }


def test_a_decision_is_counted_with_its_budget(metrics: Metrics) -> None:
    metrics.decided(DECISION)

    labels = {"pool": "short", "category": "prose", "reason": "within_threshold"}
    assert value(metrics, "extproc_decisions_total", **labels) == 1
    assert value(metrics, "extproc_budget_tokens_sum") == 100
    assert value(metrics, "extproc_budget_tokens_bucket", le="64.0") in (0, None)


def test_a_decision_without_an_estimate_has_no_budget(metrics: Metrics) -> None:
    metrics.decided(Decision(LONG, Reason.TOO_LARGE))

    assert not value(metrics, "extproc_budget_tokens_count")


def test_an_observation_is_counted_with_what_it_taught(metrics: Metrics) -> None:
    lesson = Lesson(None, -0.25, True, Misroute.TRUNCATED)
    metrics.observed(Observation(DECISION, Outcome(200, 5, attempts=2)), lesson)
    metrics.observed(Observation(DECISION, Outcome(400)), Lesson(Skipped.STATUS))

    assert value(metrics, "extproc_observations_total", result="learned") == 1
    assert value(metrics, "extproc_observations_total", result="status") == 1
    bucket = {"category": "prose", "le": "-0.2"}
    assert value(metrics, "extproc_estimate_error_ratio_bucket", **bucket) == 1
    assert value(metrics, "extproc_under_estimates_total") == 1
    assert value(metrics, "extproc_misroutes_total", kind="truncated") == 1
    assert value(metrics, "extproc_overflow_retries_total") == 1


def test_every_name_has_the_prefix_and_a_help_text(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        assert family.name.startswith("extproc_")
        assert family.documentation
    assert generate_latest(metrics.registry)
