"""Requests spill to the long pool while the short pool is under pressure."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.stack import router, stand_in

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


def test_a_queue_spills_over_and_its_end_brings_requests_back(
    stack: Any, start_session: Any, tmp_path: Path, eventually: Any
) -> None:
    short = stand_in("short", 8192, 1, tmp_path, speed=2)
    long = stack.backend("long")
    pools = [
        {"name": "short", "max_model_len": 8192, "endpoints": [short.url]},
        {"name": "long", "max_model_len": 65536, "endpoints": [long.url]},
    ]
    load = {"interval_s": 0.1, "waiting_requests": 3}
    with short.child:
        short.wait_ready()
        client, admin = start_session({"pools": pools, "load": load}, [short, long])
        assert client.chat("Hello").served_by == "vllm_short"
        # One sequence runs at a time, so seven of these requests wait until their
        # clients disconnect.
        with contextlib.ExitStack() as busy:
            for _ in range(8):
                busy.enter_context(_left_open(client, max_tokens=8000, ignore_eos=True))
            eventually(
                lambda: admin.metric("extproc_pool_waiting_requests", pool="short") >= 3
            )
            assert admin.metric("extproc_pool_under_pressure", pool="short")
            response = client.chat("Hello")
            assert response.served_by == "vllm_long"
            assert client.record(response).reason == "spilled"
        eventually(
            lambda: not admin.metric("extproc_pool_under_pressure", pool="short")
        )
        assert client.chat("Hello").served_by == "vllm_short"


@contextlib.contextmanager
def _left_open(client: Any, **fields: Any) -> Iterator[None]:
    """Send a request, leave it open, and disconnect at the end."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]} | fields
    connection = http.client.HTTPConnection("127.0.0.1", client.envoy.port, timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    try:
        yield
    finally:
        connection.close()


def test_a_router_does_not_start_with_windows_that_are_not_so(
    stack: Any, tmp_path: Path
) -> None:
    short = stack.backend("short")
    pools = [
        {"name": "short", "max_model_len": 4096, "endpoints": [short.url]},
        {"name": "long", "max_model_len": 65536},
    ]
    started = router({"pools": pools}, tmp_path)
    with started.child:
        assert started.child.wait(60) == 2
    said = started.child.log.read_text()
    assert "max_model_len: 4096" in said
    assert "has 8192" in said
