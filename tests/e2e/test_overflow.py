"""The long pool serves requests that are too long for the short pool, and no others."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .refusals import OTHER, TOO_LONG

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

# 12,000 tokens exceed the short pool's actual window, but not the window that the
# router assumes.
DIGITS = "7" * 12_000


def error_body(message: str, path: str) -> bytes:
    error: dict[str, Any] = {"message": message, "type": "BadRequestError"}
    if path == "/v1/messages":
        return json.dumps({"type": "error", "error": error}).encode()
    return json.dumps({"error": {**error, "param": None, "code": 400}}).encode()


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_overflow_is_answered_by_the_long_pool(
    optimistic_client: Any, path: str, stream: bool
) -> None:
    body = {
        "model": "m",
        "max_tokens": 4,
        "stream": stream,
        "messages": [{"role": "user", "content": DIGITS}],
    }
    response = optimistic_client.post(path, body)
    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        2,
    )
    assert response.headers["x-llm-pool"] == "short"  # the decision
    assert optimistic_client.record(response).attempts == 2
    assert "x-llm-overflow" not in response.headers
    if stream:
        assert response.body.count(b"data:") > 4
    else:
        usage = response.json()["usage"]
        assert usage.get("prompt_tokens", usage.get("input_tokens")) > 12_000


def test_overflow_of_a_body_beyond_one_buffer(optimistic_client: Any) -> None:
    """The retry sends the whole body, which exceeds the socket buffer of 1 MiB."""
    padding = " " * 900_000  # whitespace between JSON tokens adds no prompt tokens
    body = {
        "model": "m",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": DIGITS}],
    }
    raw = json.dumps(body).replace('"max_tokens"', padding + '"max_tokens"').encode()
    response = optimistic_client.post("/v1/chat/completions", raw)
    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        2,
    )


@pytest.mark.parametrize(
    ("path", "stream"),
    [("/v1/chat/completions", False), ("/v1/messages", True)],
    ids=["openai-json", "anthropic-stream"],
)
@pytest.mark.parametrize("message", TOO_LONG.values(), ids=TOO_LONG)
def test_every_refusal_for_length_is_tried_on_the_long_pool(
    message: str,
    path: str,
    stream: bool,
    scripted: Any,
    scripted_client: Any,
    respond: Any,
) -> None:
    status = 422 if "Input validation error" in message else 400
    scripted.reply = [respond(status, error_body(message, path))]
    body = {
        "model": "m",
        "max_tokens": 4,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    response = scripted_client.post(path, body)
    assert (response.status, response.attempts) == (200, 2)
    assert response.headers["x-standin"] == "long"


@pytest.mark.parametrize("message", OTHER.values(), ids=OTHER)
def test_another_400_passes_once(
    message: str, scripted: Any, scripted_client: Any, respond: Any
) -> None:
    content = error_body(message, "")
    scripted.reply = [respond(400, content)]
    received = len(scripted.received)
    response = scripted_client.chat("Hello")
    assert (response.status, response.attempts) == (400, 1)
    assert response.body == content
    assert len(scripted.received) == received + 1


def test_the_readme_counts_them() -> None:
    servers = Counter(re.split("[ ,]", name)[0] for name in TOO_LONG)
    text = (Path(__file__).parents[2] / "envoy/README.md").read_text()
    for server, count in servers.items():
        assert re.search(rf"\b{count} of {server}\b", text), (server, count)
    assert f"none of {len(OTHER)} about other mistakes" in text


def test_a_long_400_passes_unread(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    """An error that quotes the request may exceed any buffer."""
    content = error_body(TOO_LONG["vLLM 0.6"] + "x" * 2_000_000, "")
    scripted.reply = [respond(400, content)]
    response = scripted_client.chat("Hello")
    assert (response.status, response.attempts) == (400, 1)
    assert response.body == content


def test_the_second_attempt_has_the_same_body(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(400, error_body(TOO_LONG["vLLM 0.32, prompt"], ""))]
    response = scripted_client.chat("How many tokens is this, I wonder?")
    direct = scripted_client.chat("How many tokens is this, I wonder?", max_tokens=9000)
    assert response.served_by == direct.served_by == "vllm_long"
    assert (
        response.json()["usage"]["prompt_tokens"]
        == direct.json()["usage"]["prompt_tokens"]
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_overload_does_not_spill(
    status: int, scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(status, error_body(TOO_LONG["vLLM 0.6"], ""))]
    response = scripted_client.chat("Hello")
    assert (response.status, response.attempts) == (status, 1)


def test_a_short_pool_that_is_down_is_answered_by_the_long_one(
    start_envoy: Any, stack: Any, eventually: Any, unused_port: int
) -> None:
    gone = replace(stack.backend("short"), port=unused_port)
    client = start_envoy(backends=[gone, stack.backend("long")])
    eventually(lambda: client.envoy.healthy_endpoints("extproc"))
    response = client.chat("Hello")
    assert (response.status, response.served_by) == (200, "vllm_long")
    # envoy-1.37.yaml skips a pool that is known to be down.
    assert response.attempts in (1, 2)
