"""In shadow mode behind a real Envoy, all requests are decided and none is moved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


def test_requests_keep_their_route_and_their_decision_is_recorded(
    stack: Stack,
    start_session: Callable[..., Any],
    eventually: Callable[..., Any],
    tmp_path: Path,
) -> None:
    recording = tmp_path / "recording.jsonl"
    config = {
        "mode": "shadow",
        "feedback": {"sample": "all"},
        "recording": {"file": str(recording)},
    }
    client, admin = start_session(config, stack.backends)
    response = client.chat("A short question.")
    assert response.status == 200
    assert response.served_by == "vllm_long"
    logged = client.record(response)
    assert not logged.pool  # the routing header is absent
    assert logged.reason == "within_threshold"
    assert admin.status()["mode"] == "shadow"
    assert admin.metric("extproc_decisions_total", pool="short") == 1
    eventually(lambda: recording.read_text().endswith("\n"))
    (record,) = map(json.loads, recording.read_text().splitlines())
    assert record["decision"]["pool"] == "short"
    assert record["usage"]["prompt_tokens"] > 0
