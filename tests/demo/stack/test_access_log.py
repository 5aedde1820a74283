import json
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.access_log import read_records, wait_for_records

LINE: dict[str, Any] = {
    "request_id": "a",
    "status": 200,
    "pool": "short",
    "cluster": "vllm_long",
    "attempts": 2,
    "duration_ms": 7,
    "decision": {
        "category": "prose",
        "reason": "within_threshold",
        "prompt_tokens": 12.0,
        "budget_tokens": 20,
    },
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "envoy.log"
    undecided = {
        "request_id": "b",
        "status": 200,
        "pool": None,
        "decision": None,
        "cluster": "vllm_long",
        "attempts": 1,
    }
    path.write_text(
        f"warming up\n{json.dumps(LINE)}\n{json.dumps(undecided)}\n"
        + '{"request_id": "c", "sta'
    )
    return path


def test_whole_lines_are_read_and_others_left_out(log: Path) -> None:
    records = read_records(log)
    assert records.keys() == {"a", "b"}
    a, b = records["a"], records["b"]
    assert (a.pool, a.cluster, a.attempts, a.prompt_tokens, a.budget_tokens) == (
        "short",
        "vllm_long",
        2,
        12,
        20,
    )
    assert type(a.prompt_tokens) is int  # shown to people; Envoy writes 12.0
    assert (b.pool, b.category, b.prompt_tokens) == (None, None, None)


def test_waiting_returns_what_was_asked_for(log: Path) -> None:
    assert wait_for_records(log, ["a"]).keys() == {"a"}


def test_waiting_ends(log: Path) -> None:
    assert wait_for_records(log, ["a", "c"], timeout_s=0.05).keys() == {"a"}
