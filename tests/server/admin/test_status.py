"""/status is consistent: counts match the metrics, and shares and loads add up."""

import msgspec

from extproc.config import Config
from extproc.exchange.body_parser import parse_request
from extproc.exchange.events import Observation
from extproc.routing.bound import Bounded
from extproc.routing.policy import PoolLoad, Reason
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request
from extproc.routing.risk import Margin
from extproc.routing.router import Outcome, Router
from extproc.server.admin.status import StatusReporter
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.report import CategoryReport, StatusReport
from extproc.server.observe.timeline import Timeline

from ..in_force import make_in_force, make_router

PATH = "/v1/chat/completions"


def test_report_of_a_short_life() -> None:
    router = Router(
        make_router(Config()).policy,
        Bounded(TextEstimator(), Margin(0.02)),
        TextRatios(),
    )
    metrics = Metrics()
    now_s = 100.0
    loads = {"short": PoolLoad(under_pressure=True)}
    in_force = make_in_force(router, loads=lambda: loads)
    history = RecentDecisions(in_force, lambda: 100.0)
    timeline = Timeline(metrics, history, lambda: now_s)
    status = StatusReporter(
        in_force, metrics, history, timeline, lambda: True, lambda: now_s
    )
    empty = status.report()
    assert empty.decisions == 0
    assert [pool.share for pool in empty.pools] == [None, None]
    body = b'{"messages": [{"role": "user", "content": "A short question."}]}'
    request = parse_request(PATH, body)
    assert isinstance(request, Request)
    for decision in (
        router.route(request),
        router.route(request),
        router.route(request),
        router.fail_open(Reason.TOO_LARGE, 10_000_000),
    ):
        metrics.decided(decision)
        history.decided(decision)
        outcome = Outcome(200, 15, 40)
        lesson = router.learn(decision, outcome)
        metrics.observed(Observation(decision, outcome), lesson)
        history.observed(Observation(decision, outcome), lesson)
    now_s = 160.52
    report = status.report()
    assert report.uptime_s == 60.5
    assert report.decisions == 4
    assert [(p.name, p.decisions, p.share) for p in report.pools] == [
        ("short", 3, 0.75),
        ("long", 1, 0.25),
    ]
    assert report.pools[0].under_pressure
    assert report.reasons == {"within_threshold": 3, "too_large": 1}
    assert report.categories["prose"].decisions == 3
    assert report.categories["prose"].observed == 3
    assert report.categories["unknown"] == CategoryReport(1)
    assert report.observations == {"learned": 3, "failed_open": 1}
    assert report.risk.stated == 0.02
    assert report.risk.observed == 3
    assert len(report.last_decisions) == 4
    assert set(report.bytes_per_token) == {"prose"}
    assert msgspec.json.decode(msgspec.json.encode(report), type=StatusReport) == report
