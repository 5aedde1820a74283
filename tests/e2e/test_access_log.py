"""Learning from Envoy's access log covers all responses, without ext_proc messages."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.stack.envoy_config import (
    connection_manager,
    ext_proc_filter,
    find_config,
    find_envoy,
)
from extproc.demo.stack.stack import Stack, envoy, router


def envoy_is_older_than(version: tuple[int, int]) -> bool:
    said = subprocess.run([find_envoy(), "--version"], capture_output=True, text=True)
    found = re.search(r"/(\d+)\.(\d+)\.\d+/", said.stdout)
    return found is not None and (int(found[1]), int(found[2])) < version


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(
        envoy_is_older_than((1, 38)), reason="sse_to_metadata came with Envoy 1.38"
    ),
]

FRAGMENT = Path(__file__).parents[2] / "envoy" / "access_log.yaml"

TRAFFIC: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {}),
    (
        "/v1/chat/completions",
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    ("/v1/messages", {}),
    ("/v1/messages", {"stream": True}),
    ("/v1/responses", {"input": "Count me as a response. " * 9}),
    ("/v1/responses", {"input": "Count me as a stream. " * 9, "stream": True}),
    ("/v1/completions", {"prompt": "31415926535 8979 " * 30}),
]


def with_access_log(config: dict[str, Any]) -> None:
    """Insert each part of the fragment where its comment specifies."""
    pieces = yaml.safe_load(FRAGMENT.read_text())
    ext_proc_filter(config)["metadata_options"] = pieces["metadata_options"]
    manager = connection_manager(config["static_resources"]["listeners"][0])
    manager["http_filters"][-1:-1] = pieces["http_filters"]
    for logger in pieces["access_log"]:
        # This interval avoids a wait of one second in each test.
        logger["typed_config"]["common_config"]["buffer_flush_interval"] = "0.05s"
    manager["access_log"] += pieces["access_log"]


@pytest.fixture(scope="module")
def start(
    stack: Stack,
    client_of: Any,
    admin_of: Any,
    patiently: Any,
    tmp_path_factory: Any,
) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Return a function that starts a router, and an Envoy that logs to the router."""
    with contextlib.ExitStack() as started:

        def begin(config: dict[str, Any], backends: Any = None) -> tuple[Any, Any]:
            directory = tmp_path_factory.mktemp("lane")
            new_router = router(config, directory)
            started.enter_context(new_router.child)
            new_router.wait_ready()
            new = envoy(
                find_config(),
                backends or stack.backends,
                new_router.port,
                directory,
                change=patiently(with_access_log),
            )
            started.enter_context(new.child)
            new.wait_ready()
            return client_of(new), admin_of(new_router)

        yield begin


@pytest.fixture(scope="module")
def logged(start: Any, tmp_path_factory: Any) -> tuple[Any, Any, Path]:
    """Run a router that learns from the access log, on the native transport."""
    recording = tmp_path_factory.mktemp("recording") / "observed.jsonl"
    config = {
        "feedback": {"access_log": True},
        "server": {"transport": "native"},
        "recording": {"file": str(recording)},
    }
    return *start(config), recording


def send(client: Any, path: str, fields: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": "m", "max_tokens": 3}
    if path == "/v1/responses":
        body = {"model": "m"}
    elif path != "/v1/completions":
        body["messages"] = [{"role": "user", "content": "Hello there, you. " * 20}]
    assert client.post(path, body | fields).status == 200


def observed(admin: Any, **labels: str) -> float:
    return float(admin.metric("extproc_observations_total", **labels))


def test_every_response_is_observed_without_a_message_for_it(
    logged: Any, eventually: Any
) -> None:
    client, admin, recording = logged
    before = observed(admin, result="learned")
    sent = client.envoy.stat("http.llm.ext_proc.stream_msgs_sent")
    began_s = time.monotonic()
    for path, fields in TRAFFIC:
        send(client, path, fields)
    took_s = time.monotonic() - began_s
    eventually(lambda: observed(admin, result="learned") == before + len(TRAFFIC))
    # Envoy sends the headers and the body of each request, and the reply to the body
    # ends the exchange.
    messages = client.envoy.stat("http.llm.ext_proc.stream_msgs_sent") - sent
    assert messages == 2 * len(TRAFFIC)
    assert admin.metric("extproc_access_log_entries_total", result="observed") == (
        observed(admin)
    )
    lines = [json.loads(line) for line in recording.read_text().splitlines()]
    for line in lines[-len(TRAFFIC) :]:
        assert line["cluster"] == "vllm_short"
        assert 0 < line["first_byte_s"] < took_s


def test_both_lanes_learn_the_same_from_the_same_traffic(
    start: Any, eventually: Any
) -> None:
    lanes = [
        start({"feedback": {"sample": "all"}}),
        start({"feedback": {"access_log": True}}),
    ]
    for client, admin in lanes:
        for number, (path, fields) in enumerate(TRAFFIC * 2, start=1):
            send(client, path, fields)
            eventually(
                lambda admin=admin, number=number: (
                    observed(admin, result="learned") == number
                )
            )
    passing, afterwards = (admin.status() for _, admin in lanes)
    assert passing["bytes_per_token"] == afterwards["bytes_per_token"] != {}
    for name, category in passing["categories"].items():
        twin = afterwards["categories"][name]
        assert twin["observed"] == category["observed"]
        assert twin["error_curve"] == category["error_curve"]
    assert passing["misroutes"] == afterwards["misroutes"]


def test_what_is_not_learned_is_observed_all_the_same(
    logged: Any, eventually: Any
) -> None:
    client, admin, _ = logged
    results = {"status": 0.0, "no_usage": 0.0, "failed_open": 0.0}
    before = {result: observed(admin, result=result) for result in results}
    assert client.chat("Hello", max_tokens=0).status == 400
    assert client.chat("Hello", stream=True).status == 200  # without usage
    assert client.post("/v1/chat/completions", b"no JSON").status == 400
    eventually(
        lambda: (
            {result: observed(admin, result=result) for result in results}
            == {result: count + 1 for result, count in before.items()}
        )
    )


def test_a_retry_is_recorded_with_who_answered(
    start: Any, stack: Any, eventually: Any
) -> None:
    pools = [
        {"name": "short", "max_model_len": 30_000},
        {"name": "long", "max_model_len": 65_536},
    ]
    client, admin = start({"feedback": {"access_log": True}, "pools": pools})
    response = client.chat("7" * 12_000)
    assert (response.served_by, response.attempts) == ("vllm_long", 2)
    eventually(lambda: admin.metric("extproc_overflow_retries_total") == 1)
    labels = {"pool": "short", "cluster": "vllm_long"}
    assert admin.metric("extproc_served_total", **labels) == 1
    assert admin.metric("extproc_first_byte_seconds_count", pool="short") == 1
    assert admin.metric("extproc_first_byte_seconds_sum", pool="short") > 0


def test_what_lane_1_looks_at_is_learned_once(start: Any, eventually: Any) -> None:
    client, admin = start({"feedback": {"access_log": True, "sample": 0.5}})
    for _ in range(12):
        client.chat("Hello there")
    eventually(lambda: observed(admin, result="learned") == 12)
    logged = admin.metric("extproc_access_log_entries_total", result="observed")
    assert 3 <= logged <= 9


def test_the_operators_log_line_stays_small(logged: Any) -> None:
    client, _, _ = logged
    response = client.chat("Hello there. " * 100)
    client.record(response)
    line = next(
        line
        for line in client.envoy.access_log.read_text().splitlines()
        if response.request_id in line
    )
    assert "decision" in json.loads(line)
    assert "extproc.receipt" not in line
    assert len(line) < 1000
