"""The effect of recorded decisions on a fleet, compared with figures counted by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from extproc.commands.recording_report import Recorded, score_recording
from extproc.exchange.events import Observation
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision, Outcome

SHORT, LONG = Pool("short", 8192, 5000), Pool("long", 65536, 65536)


def recorded(
    pool: Pool,
    counted: int,
    *,
    reason: Reason = Reason.WITHIN_THRESHOLD,
    declared: bool = True,
    budget: int | None = None,
) -> Recorded:
    """Return a request that declared 1,000 output tokens and received 40."""
    estimate = counted if budget is None else budget - 1000
    decision = Decision(
        pool,
        reason,
        "prose",
        body_bytes=4 * counted,
        prompt_tokens=estimate,
        bound_tokens=estimate,
        output_tokens=1000,
        declared=declared,
    )
    return Recorded(0.0, Observation(decision, Outcome(200, counted, 40)))


def score(*lines: Recorded) -> dict[str, Any]:
    return score_recording(lambda: lines, (8192,))


def belongs(lines: Sequence[Recorded], pool: str) -> tuple[int, int]:
    tally = score(*lines)["pools"][pool]
    return tally["too_small"], tally["too_large"]


def test_a_request_above_the_threshold_belongs_into_the_larger_pool() -> None:
    other = recorded(LONG, 20_000)
    assert belongs([recorded(SHORT, 4000), other], "short") == (0, 0)
    assert belongs([recorded(SHORT, 4001), other], "short") == (1, 0)
    assert belongs([recorded(SHORT, 500), recorded(LONG, 4000)], "long") == (0, 1)
    assert belongs([recorded(SHORT, 500), recorded(LONG, 4001)], "long") == (0, 0)


def test_the_largest_pool_is_right_for_a_need_that_no_pool_holds() -> None:
    lines = [recorded(SHORT, 500), recorded(LONG, 65_000)]
    assert belongs(lines, "long") == (0, 0)


def test_where_none_was_declared_the_output_that_came_counts() -> None:
    lines = [recorded(SHORT, 4500, declared=False), recorded(LONG, 20_000)]
    assert belongs(lines, "short") == (0, 0)


def test_pool_names_of_one_window_count_as_one_pool() -> None:
    twin = Pool("twin", 8192, 8192)
    report = score(recorded(SHORT, 4000), recorded(twin, 8000))
    assert report["pools"]["short"]["too_small"] == 0
    assert report["pools"]["twin"]["too_small"] == 0
    assert report["advice"] is None


def test_of_one_pool_there_is_nothing_to_advise() -> None:
    assert score(*[recorded(LONG, 500)] * 400)["advice"] is None


def test_the_advice_is_about_the_threshold_in_force_and_what_was_decided() -> None:
    lines = [recorded(SHORT, 500)] * 300 + [recorded(LONG, 20_000)] * 100
    current = score(*lines)["advice"]["current"]
    assert current["threshold_tokens"] == 5000
    assert current["short_fraction"] == pytest.approx(0.75, abs=0.01)
    # A request that failed open had no estimate, so its budget is meaningless.
    usage_not_requested = recorded(LONG, 0, reason=Reason.UNPARSABLE, budget=1000)
    assert score(*lines, *[usage_not_requested] * 400)["advice"]["current"] == current
