"""The counts of the intervals of the last fifteen minutes add up."""

import asyncio

import pytest

from extproc.exchange.events import Observation
from extproc.routing.policy import Reason
from extproc.routing.request import Prompt, Request
from extproc.routing.router import Outcome
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.timeline import INTERVALS, Timeline, quantile

from ..in_force import make_in_force


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_intervals_hold_what_happened_in_them() -> None:
    clock, metrics, in_force = Clock(), Metrics(), make_in_force()
    recent = RecentDecisions(in_force, clock)
    timeline = Timeline(metrics, recent, clock)
    (router,) = in_force.now.router.routers
    for count in (3, 0, 1):
        for _ in range(count):
            text = b"Words and more words. " * 9
            decision = router.route(Request(Prompt(text), len(text)))
            outcome = Outcome(200, 45, 7)
            lesson = router.learn(decision, outcome)
            metrics.decided(decision)
            metrics.decided(router.fail_open(Reason.TOO_LARGE, 9))
            recent.observed(Observation(decision, outcome), lesson)
            metrics.message_seconds.add(0.0003, "request_body")
        clock.now_s += 10
        timeline.sample()

    intervals = timeline.intervals()

    assert [each.time_s for each in intervals] == [1010, 1020, 1030]
    assert [each.pools for each in intervals] == [
        {"short": 3, "long": 3},
        {},
        {"short": 1, "long": 1},
    ]
    assert [each.failed_open for each in intervals] == [3, 0, 1]
    assert [each.observed for each in intervals] == [3, 0, 1]
    assert intervals[0].absolute_error > 0 == intervals[1].absolute_error
    assert intervals[1].p99_s is None
    assert 0.0002 < (intervals[0].p50_s or 0) <= 0.0005
    assert timeline.router().p99_s == pytest.approx(0.0005, rel=0.1)


@pytest.mark.parametrize("slept", [0.9999, 1.0, 1.3])
def test_an_interval_is_sampled_once_however_a_timer_ends(
    slept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers use another clock with millisecond resolution, so they can end early."""
    clock, metrics, in_force = Clock(), Metrics(), make_in_force()
    timeline = Timeline(metrics, RecentDecisions(in_force, clock), clock)
    end_s = clock.now_s + 200

    async def sleep(seconds: float) -> None:
        if clock.now_s >= end_s:
            raise asyncio.CancelledError
        clock.now_s += max(slept * seconds, 0.0001)

    monkeypatch.setattr("asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(timeline.run())

    ends = [each.time_s for each in timeline.intervals()]
    assert ends == [float(end) for end in range(1010, 1210, 10)]


def test_a_clock_that_is_set_back_stops_no_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, metrics, in_force = Clock(), Metrics(), make_in_force()
    timeline = Timeline(metrics, RecentDecisions(in_force, clock), clock)
    steps = iter([10, -500, 10, 10])

    async def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise asyncio.CancelledError
        clock.now_s += step

    monkeypatch.setattr("asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(timeline.run())

    assert len(timeline.intervals()) == 4


def test_only_fifteen_minutes_stay() -> None:
    clock, metrics, in_force = Clock(), Metrics(), make_in_force()
    timeline = Timeline(metrics, RecentDecisions(in_force, clock), clock)
    for _ in range(2 * INTERVALS):
        clock.now_s += 10
        timeline.sample()
    intervals = timeline.intervals()
    assert len(intervals) == INTERVALS
    assert intervals[-1].time_s == clock.now_s


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.5),
        ([10, 10, 0], 0.75, 1.5),
        ([0, 0, 5], 0.5, 2.0),
    ],
)
def test_quantiles_lie_within_their_bucket(
    counts: list[int], share: float, expected: float | None
) -> None:
    assert quantile([1.0, 2.0], counts, share) == expected
