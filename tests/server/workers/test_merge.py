"""Combined metrics and reports of several workers equal those of a single server."""

import json
import time
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from extproc.exchange.events import Observation
from extproc.exchange.feedback import FeedbackSampler
from extproc.routing.request import Prompt, Request
from extproc.routing.router import Outcome
from extproc.server.admin.status import StatusReporter
from extproc.server.observe.advising import Advisor
from extproc.server.observe.gauges import InForceCollector
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import LAST_DECISIONS, RecentDecisions
from extproc.server.observe.report import BudgetsReport, StatusReport
from extproc.server.observe.timeline import Timeline
from extproc.server.services.ext_proc import ExtProcService
from extproc.server.workers.merge import MergedMetrics, merge_reports

from ..in_force import make_in_force


class Process:
    """The internal parts of one worker, which decides and learns."""

    def __init__(self) -> None:
        in_force = make_in_force(sampler=FeedbackSampler(1.0, adaptive=False))
        (self.router,) = in_force.now.router.routers
        self.metrics = Metrics()
        self.metrics.registry.register(InForceCollector(in_force))
        history = RecentDecisions(in_force, time.time)
        advisor = Advisor(in_force)
        self.service = ExtProcService(
            in_force,
            self.metrics,
            decision_watchers=[history, advisor],
            observation_watchers=[history, advisor],
        )
        timeline = Timeline(self.metrics, history, time.time)
        self.status = StatusReporter(
            in_force, self.metrics, history, timeline, lambda: True, time.time
        )

    def serve(self, times: int, text: bytes = b"Words and more words. " * 9) -> None:
        for _ in range(times):
            request = Request(Prompt(text), len(text) + 50)
            decision = self.router.route(request)
            self.service.decided(decision)
            self.service.learn(Observation(decision, Outcome(200, 45, 7)))

    def text(self) -> str:
        return generate_latest(self.metrics.registry).decode()


def samples(merged: MergedMetrics) -> dict[str, float]:
    """Return samples by name and labels, in the text format's notation."""
    found = {}
    for line in merged.render().decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


def total(found: dict[str, float], name: str) -> float:
    return sum(v for k, v in found.items() if k.partition("{")[0] == name)


def merged_of(processes: Sequence[Process]) -> MergedMetrics:
    merged = MergedMetrics(len(processes))
    for number, process in enumerate(processes):
        merged.take(number, process.text())
    return merged


@pytest.mark.parametrize("served", [[0], [3], [0, 2], [1, 4, 2]])
def test_counts_and_histograms_add_up(served: list[int]) -> None:
    processes = [Process() for _ in served]
    for process, times in zip(processes, served, strict=True):
        process.serve(times)
    found = samples(merged_of(processes))
    assert total(found, "extproc_decisions_total") == sum(served)
    assert total(found, "extproc_observations_total") == sum(served)
    if sum(served):
        assert found["extproc_budget_tokens_count"] == sum(served)
        assert found['extproc_budget_tokens_bucket{le="+Inf"}'] == sum(served)


def test_one_workers_metrics_are_as_they_were() -> None:
    process = Process()
    process.serve(3)
    merged = merged_of([process]).render().decode()
    families = {f.name: f for f in text_string_to_metric_families(merged)}
    for family in text_string_to_metric_families(process.text()):
        if family.name.endswith("_created"):
            assert family.name not in families
            continue
        other = families[family.name]
        assert (other.type, other.documentation) == (family.type, family.documentation)
        for sample in family.samples:
            values = [
                each.value
                for each in other.samples
                if each.name == sample.name
                and {k: v for k, v in each.labels.items() if k != "worker"}
                == sample.labels
            ]
            assert values == [sample.value]


def test_buckets_come_in_the_order_of_their_bounds() -> None:
    process = Process()
    process.serve(2)
    merged = merged_of([process, process]).render().decode()
    families = {f.name: f for f in text_string_to_metric_families(merged)}
    bounds = [
        float(sample.labels["le"])
        for sample in families["extproc_budget_tokens"].samples
        if "le" in sample.labels
    ]
    assert bounds == sorted(bounds)
    assert len(bounds) > 5


def test_a_restart_takes_nothing_back() -> None:
    first, second = Process(), Process()
    first.serve(5)
    second.serve(2)
    merged = merged_of([first, second])
    merged.restarted(0)
    merged.take(0, None)
    assert total(samples(merged), "extproc_decisions_total") == 7
    again = Process()
    again.serve(1)
    merged.take(0, again.text())
    found = samples(merged)
    assert total(found, "extproc_decisions_total") == 8
    assert found['extproc_worker_restarts_total{worker="0"}'] == 1
    assert found['extproc_worker_restarts_total{worker="1"}'] == 0


def test_of_a_worker_without_an_answer_the_counts_stand_and_the_state_does_not() -> (
    None
):
    first, second = Process(), Process()
    for process in (first, second):
        process.serve(1)
        process.metrics.streams_inflight = 3
    merged = merged_of([first, second])
    assert samples(merged)["extproc_streams_inflight"] == 6
    merged.take(1, None)
    found = samples(merged)
    assert total(found, "extproc_decisions_total") == 2
    assert found["extproc_streams_inflight"] == 3
    assert found['extproc_bytes_per_token{category="prose",worker="0"}'] > 1
    assert 'extproc_bytes_per_token{category="prose",worker="1"}' not in found
    assert found['extproc_worker_up{worker="1"}'] == 0


def test_reports_add_up() -> None:
    first, second = Process(), Process()
    first.serve(40)
    second.serve(20)
    second.serve(3, b"31415926535 8979 " * 30)
    reports = [first.status.report(), second.status.report()]
    merged = merge_reports(reports)
    assert merged.decisions == 63
    assert sum(pool.decisions for pool in merged.pools) == 63
    assert sum(pool.share or 0 for pool in merged.pools) == pytest.approx(1)
    assert merged.categories["prose"].decisions == 60
    assert merged.categories["prose"].observed == 60
    assert merged.categories["digits"].observed == 3
    assert set(merged.bytes_per_token) == {"prose", "digits"}
    assert merged.observations == {"learned": 63}
    assert merged.risk.observed == 63
    times = [decision.time_s for decision in merged.last_decisions]
    assert len(times) == LAST_DECISIONS
    assert times == sorted(times, reverse=True)
    assert shape(merged) == shape(reports[0])


def shape(report: StatusReport) -> dict[str, type]:
    """Return the type of each value in a report, which the page reads."""
    document = json.loads(msgspec.json.encode(report))
    return {name: type(value) for name, value in document.items()}


def test_budgets_and_advice_are_those_of_all() -> None:
    first, second = Process(), Process()
    first.serve(300)
    second.serve(100, b"Many words. " * 2000)
    reports = [first.status.report(), second.status.report()]
    merged = merge_reports(reports)
    shares = [report.budgets.shares for report in reports]
    assert shares[0] != shares[1]
    assert merged.budgets.shares == pytest.approx(
        [0.75 * a + 0.25 * b for a, b in zip(*shares, strict=True)], abs=0.01
    )
    assert reports[1].advice is None  # too few requests for advice
    assert merged.advice == reports[0].advice


def test_reports_of_idle_workers_add_up_too() -> None:
    merged = merge_reports([Process().status.report(), Process().status.report()])
    assert merged.decisions == 0
    assert merged.risk.achieved is None
    assert [pool.share for pool in merged.pools] == [None, None]


def test_a_worker_that_has_other_pools_for_a_moment_is_left_out_of_the_budgets() -> (
    None
):
    """Workers adopt a new configuration one after the other."""
    first, second = Process(), Process()
    first.serve(30)
    second.serve(10)
    reports = [first.status.report(), second.status.report()]
    budgets = reports[1].budgets
    others = BudgetsReport(
        [*budgets.thresholds, 1 << 20],
        [*budgets.shares, 0.0],
        budgets.requests,
        token_shares=[1.0],
    )
    merged = merge_reports([reports[0], replace(reports[1], budgets=others)])
    assert merged.budgets == reports[0].budgets
    assert merged.decisions == 40
