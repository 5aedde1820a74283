"""A recorded observation contains what replay needs, and no text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.exchange.events import Observation, Serving
from extproc.exchange.observation_line import read_line, write_line
from extproc.fleet.usage_log import read_records
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision, Outcome

DECISION = Decision(
    Pool("short", 8192, 4096),
    Reason.WITHIN_THRESHOLD,
    category="code",
    model="client text",
    body_bytes=400,
    prompt_tokens=100,
    bound_tokens=120,
    output_tokens=64,
    declared=True,
    sequences=4,
)


@given(
    status=st.integers(100, 599),
    prompt_tokens=st.none() | st.integers(0, 1 << 20),
    completion_tokens=st.none() | st.integers(0, 1 << 20),
    truncated=st.booleans(),
    attempts=st.integers(1, 3),
    serving=st.none()
    | st.builds(Serving, st.text(max_size=9), st.none() | st.just(0.125)),
)
def test_reads_back_what_was_written(
    status: int,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    truncated: bool,
    attempts: int,
    serving: Serving | None,
) -> None:
    outcome = Outcome(status, prompt_tokens, completion_tokens, truncated, attempts)
    observation = Observation(DECISION, outcome, serving)
    line = write_line(observation, 1.5)
    assert b"client text" not in line
    read = read_line(line)
    assert read.time == 1.5
    assert read.observation == replace(
        observation, decision=replace(DECISION, model="")
    )


def test_a_workload_can_be_read_from_records() -> None:
    lines = [
        write_line(Observation(DECISION, Outcome(200, 91, 30)), time_s).decode()
        for time_s in (10.0, 11.0, 13.0)
    ]
    records = read_records(lines, "recording")
    assert (records.read, records.skipped) == (3, 0)


@pytest.mark.parametrize(
    "change", [{"decision": 1}, {"usage": None}, {"status": "x"}, {"attempts": None}]
)
def test_says_what_is_no_record(change: dict[str, object]) -> None:
    line = write_line(Observation(DECISION, Outcome(200, 91, 30)), 1.5)
    (key,) = change
    with pytest.raises(ValueError, match=f"`\\$.{key}"):
        read_line(json.dumps(json.loads(line) | change).encode())
