"""Metrics, status and advice by model, for one worker and for several."""

import asyncio
from collections.abc import Mapping

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from extproc.config import Config, load_config
from extproc.exchange.events import Observation
from extproc.routing.decision import OTHER_MODEL, Decision, Outcome
from extproc.routing.request import Prompt, Request
from extproc.server.admin.status import StatusReporter
from extproc.server.build import build
from extproc.server.observe.gauges import InForceCollector
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.report import ModelReport, StatusReport
from extproc.server.observe.timeline import Timeline
from extproc.server.runtime import Runtime
from extproc.server.workers.merge import MergedMetrics, merge_reports

from ..in_force import make_in_force
from ..pools.fake_vllm import FakeVllm

FLEET = """
models:
  llama:
    adapters: ["legal-*"]
    pools: [{name: l-short, max_model_len: 8192}, {name: l-long, max_model_len: 65536}]
    output: {default_tokens: 100}
  qwen:
    pools: [{name: q, max_model_len: 32768}]
    risk: {under_estimate_rate: 0.05}
    media: {image_tokens: 7}
unknown_model: {default: qwen}
media: {audio_tokens: 11}
output: {ceiling_tokens: 3000}
"""


def fleet(text: str = FLEET) -> Config:
    return load_config(text, {})


class Server:
    """The internal parts of one process, which decides, learns and counts."""

    def __init__(self) -> None:
        self.in_force = make_in_force(config=fleet())
        self.metrics = Metrics()
        self.recent = RecentDecisions(self.in_force, lambda: 100.0)
        timeline = Timeline(self.metrics, self.recent, lambda: 100.0)
        self.status = StatusReporter(
            self.in_force,
            self.metrics,
            self.recent,
            timeline,
            lambda: True,
            lambda: 100.0,
        )
        self.registry = CollectorRegistry()
        self.registry.register(InForceCollector(self.in_force))

    def serve(self, name: str, times: int = 1) -> Decision:
        for _ in range(times):
            text = b"Words and more words. " * 9
            router = self.in_force.now.router.find(name)
            assert router is not None
            decision = router.route(Request(Prompt(text), len(text), model=name))
            outcome = Outcome(200, 45, 7)
            lesson = self.in_force.now.router.learn(decision, outcome)
            for watcher in (self.metrics, self.recent):
                watcher.decided(decision)
                watcher.observed(Observation(decision, outcome), lesson)
            counts = self.in_force.now.budgets[decision.pool.model]
            counts.decided(decision)
            counts.observed(decision, outcome)
        return decision

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def gauge(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def models_of(report: StatusReport) -> Mapping[str, ModelReport]:
    assert not isinstance(report.models, msgspec.UnsetType)
    return {model.name: model for model in report.models}


def test_metrics_name_configured_models_and_other_and_nothing_else() -> None:
    server = Server()
    for name in ("llama", "legal-7", "qwen", "made up", "<script>", ""):
        server.serve(name)
    found = {
        sample.labels["model"]
        for registry in (server.metrics.registry, server.registry)
        for family in registry.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert found == {"llama", "qwen", OTHER_MODEL}
    labels = {"pool": "q", "category": "prose", "reason": "within_threshold"}
    assert server.value("extproc_decisions_total", model=OTHER_MODEL, **labels) == 3
    assert server.value("extproc_decisions_total", model="qwen", **labels) == 1
    assert server.value("extproc_observations_total", result="learned", model="llama")
    assert server.gauge("extproc_models_learned_apart") == 3
    assert server.gauge("extproc_shared_lessons_total") == 0


def test_each_model_states_its_risk_and_gets_its_advice() -> None:
    server = Server()
    assert server.gauge("extproc_stated_under_estimate_rate", model="llama") == 0.01
    assert server.gauge("extproc_stated_under_estimate_rate", model="qwen") == 0.05
    server.serve("legal-1", 300)
    server.serve("qwen", 10)
    assert server.gauge("extproc_advised_threshold_tokens", model="llama") == 1024
    assert server.gauge("extproc_advised_threshold_tokens", model="qwen") is None


def test_settings_of_a_model_complete_the_fleet_s() -> None:
    server = Server()
    llama, qwen = server.in_force.now.router.routers
    assert (llama.media_tokens.image, llama.media_tokens.audio) == (1024, 11)
    assert (qwen.media_tokens.image, qwen.media_tokens.audio) == (7, 11)
    output = fleet().models["llama"].output
    assert output is not None
    assert (output.default_tokens, output.ceiling_tokens) == (100, 3000)
    assert llama.allowance.allow("llama", "prose") == 100
    assert llama.allowance.allow("qwen", "prose") == 512


def test_the_status_reports_each_model() -> None:
    server = Server()
    server.serve("llama", 3)
    server.serve("made up", 1)
    report = server.status.report()
    models = models_of(report)
    assert list(models) == ["llama", "qwen", OTHER_MODEL]
    assert (models["llama"].decisions, models["llama"].share) == (3, 0.75)
    assert models["llama"].observed == models["llama"].risk.observed == 3
    assert (models["qwen"].decisions, models["qwen"].observed) == (0, 0)
    assert models[OTHER_MODEL].decisions == 1
    assert [pool.model for pool in report.pools] == ["llama", "llama", "qwen"]
    assert report.last_decisions[0].base_model == OTHER_MODEL
    again = msgspec.json.decode(msgspec.json.encode(report), type=StatusReport)
    assert again == report


def test_reports_of_workers_add_up_by_model() -> None:
    first, second = Server(), Server()
    first.serve("llama", 6)
    second.serve("llama", 2)
    second.serve("qwen", 2)
    reports = [first.status.report(), second.status.report()]
    merged = models_of(merge_reports(reports))
    assert (merged["llama"].decisions, merged["llama"].share) == (8, 0.8)
    assert merged["llama"].observed == merged["llama"].risk.observed == 8
    errors = [models_of(report)["llama"].mean_absolute_error for report in reports]
    assert None not in errors
    assert merged["llama"].mean_absolute_error == pytest.approx(
        sum((error or 0) * n for error, n in zip(errors, (6, 2), strict=True)) / 8
    )
    metrics = MergedMetrics(2)
    for worker, server in enumerate((first, second)):
        metrics.take(worker, generate_latest(server.metrics.registry).decode())
    assert b'extproc_budget_tokens_count{model="llama"} 8.0' in metrics.render()


def test_without_models_there_is_no_label() -> None:
    registry = Metrics().registry
    assert registry.get_sample_value("extproc_under_estimates_total") == 0
    assert b"model=" not in generate_latest(registry)


def test_an_adapter_that_a_server_lists_is_known_after_a_reload_too() -> None:
    """The pools of a model also change while requests are in flight."""

    async def scenario() -> None:
        vllm = FakeVllm(max_model_len=32768)
        await vllm.start()
        text = FLEET.replace(
            "max_model_len: 32768}",
            f"max_model_len: 32768, endpoints: ['{vllm.url}']}}",
        ).replace("unknown_model: {default: qwen}", "")
        runtime = Runtime(build(fleet(text)), lambda: True, lambda call: call())
        await runtime.start()
        try:
            for threshold in (8192, 4096):
                now = runtime.in_force.now
                found = now.decider.find({}, "adapter")
                assert found is not None
                assert found.model == "qwen"
                assert now.decider.find({}, "not listed") is None
                assert now.router.routers[0].policy.thresholds == [threshold]
                await runtime.replace(
                    fleet(
                        text.replace(
                            "l-short, max_model_len: 8192",
                            "l-short, max_model_len: 8192, threshold_tokens: 4096",
                        )
                    ),
                    lambda component: {},
                )
        finally:
            await runtime.stop()
            await vllm.stop()

    asyncio.run(scenario())
