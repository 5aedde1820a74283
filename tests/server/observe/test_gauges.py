"""Gauges whose values are read from the configuration in force at each scrape."""

from prometheus_client import CollectorRegistry, generate_latest

from extproc.config import load_config
from extproc.routing.features import measure
from extproc.routing.request import Prompt
from extproc.server.build import build_generation
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.gauges import InForceCollector

TEXT = b"some text to learn from " * 10


def generation(text: str = "") -> Generation:
    return build_generation(load_config(text, {}))


def value(in_force: InForce, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(InForceCollector(in_force))
    assert generate_latest(registry)
    return registry.get_sample_value(name, labels)


def test_learned_ratios_and_risk_are_read() -> None:
    in_force = InForce(generation())
    assert value(in_force, "extproc_stated_under_estimate_rate") == 0.01
    assert value(in_force, "extproc_achieved_under_estimate_rate") is None
    features = measure(Prompt(TEXT), len(TEXT))
    in_force.now.router.ratios.observe("prose", features, 60)
    in_force.now.router.estimator.observe("m", "prose", features, 60)
    learned = in_force.now.router.ratios.bytes_per_token("prose")
    assert value(in_force, "extproc_bytes_per_token", category="prose") == learned
    assert value(in_force, "extproc_achieved_under_estimate_rate") == 0.0


def test_a_pool_without_an_answer_has_no_queue() -> None:
    endpoint = "endpoints: ['http://127.0.0.1:1']"
    in_force = InForce(
        generation(f"pools: [{{name: only, max_model_len: 100, {endpoint}}}]")
    )
    assert value(in_force, "extproc_pool_under_pressure", pool="only") == 0
    assert value(in_force, "extproc_pool_waiting_requests", pool="only") is None


def test_the_next_generation_is_read_once_it_is_in_force() -> None:
    in_force = InForce(generation())
    in_force.now = generation("risk: {under_estimate_rate: 0.25}")
    assert value(in_force, "extproc_stated_under_estimate_rate") == 0.25
