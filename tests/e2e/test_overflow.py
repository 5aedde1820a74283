"""What the short pool refuses as too long is answered by the long one; nothing else is."""

import json
from dataclasses import replace
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

# 12,000 tokens: more than the short pool holds, fewer than its router believes.
DIGITS = "7" * 12_000

# vLLM's, over the years and in both of its front ends.
TOO_LONG = {
    "0.32, prompt": "This model's maximum context length is 8192 tokens. However, your prompt contains 9001 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
    "0.32, characters": "This model's maximum context length is 8192 tokens. However, your prompt contains 990000 characters (more than 80000 characters, which is the upper bound for 8192 input tokens). Please reduce the length of the input prompt.",
    "0.32, prompt as long as the window": "The decoder prompt (length 8192) plus the number of requested output tokens (at least 1) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens (prompt + requested output tokens).",
    "0.32, max_tokens": "max_tokens=9000 cannot be greater than max_model_len=8192. Please request fewer output tokens.",
    "0.32, input length": "Input length (9001) exceeds model's maximum context length (8192).",
    "0.15": "You passed 9001 input tokens and requested 16 output tokens. However, the model's context length is only 8192 tokens, resulting in a maximum input length of 8176 tokens. Please reduce the length of the input prompt.",
    "0.11": "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is 8192 tokens and your request has 2778 input tokens (8000 > 8192 - 2778). None",
    "0.9": "The decoder prompt (length 9001) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    "0.6": "This model's maximum context length is 8192 tokens. However, you requested 9217 tokens (9001 in the messages, 216 in the completion). Please reduce the length of the messages or completion.",
    "Rust front end": "this model's maximum context length is 8192 tokens, but the prompt contains 9001 input tokens",
}
OTHER = {
    "a field": "temperature must be non-negative, got -1.0.",
    "it talks of lengths": "The maximum context length of a conversation is a hard question.",
    "a list": "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]",
}


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
    assert response.headers["x-llm-pool"] == "short"  # what was decided
    assert optimistic_client.record(response).attempts == 2
    assert "x-llm-overflow" not in response.headers
    if stream:
        assert response.body.count(b"data:") > 4
    else:
        usage = response.json()["usage"]
        assert usage.get("prompt_tokens", usage.get("input_tokens")) > 12_000


def test_overflow_of_a_body_beyond_one_buffer(optimistic_client: Any) -> None:
    """The whole body is kept for the second attempt, past the 1 MiB socket buffer."""
    padding = " " * 900_000  # white space between JSON tokens costs no prompt tokens
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


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("message", TOO_LONG.values(), ids=TOO_LONG.keys())
def test_every_wording_of_too_long_is_known(
    message: str, path: str, scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(400, error_body(message, path))]
    body = {
        "model": "m",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    response = scripted_client.post(path, body)
    assert (response.status, response.attempts) == (200, 2)
    assert response.headers["x-standin"] == "long"


@pytest.mark.parametrize("message", OTHER.values(), ids=OTHER.keys())
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


def test_a_long_400_passes_unread(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    """An answer that quotes the request may be longer than any buffer."""
    content = error_body(TOO_LONG["0.6"] + "x" * 2_000_000, "")
    scripted.reply = [respond(400, content)]
    response = scripted_client.chat("Hello")
    assert (response.status, response.attempts) == (400, 1)
    assert response.body == content


def test_the_second_attempt_has_the_same_body(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(400, error_body(TOO_LONG["0.32, prompt"], ""))]
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
    scripted.reply = [respond(status, error_body(TOO_LONG["0.6"], ""))]
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
    # In envoy-1.37.yaml a pool that is known to be down is not tried.
    assert response.attempts in (1, 2)
