"""`requests.retry_cut_answers`: retry a response that the short window truncated."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

WINDOW = 8192
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
TEXT = 'He wrote: "finish_reason": "length", {"total_tokens": 8192}.'


def answer(path: str, completion: int, *, prompt: int = 40, cut: bool = True) -> bytes:
    """Return vLLM's response for a path; its text quotes the markers that the router
    searches for.
    """
    body: dict[str, Any]
    if path == MESSAGES:
        body = {
            "type": "message",
            "content": [{"type": "text", "text": TEXT}],
            "stop_reason": "max_tokens" if cut else "end_turn",
            "usage": {"input_tokens": prompt, "output_tokens": completion},
        }
    elif path == RESPONSES:
        body = {
            "object": "response",
            "output": [{"content": [{"type": "output_text", "text": TEXT}]}],
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": 16},
                "output_tokens": completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + completion,
            },
        }
    else:
        body = {
            "object": "chat.completion",
            "choices": [
                {
                    "message": {"role": "assistant", "content": TEXT},
                    "finish_reason": "length" if cut else "stop",
                    "stop_reason": None,
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
                "prompt_tokens_details": None,
            },
        }
    return json.dumps(body).encode()


def question(path: str, **more: Any) -> dict[str, Any]:
    key = {COMPLETIONS: "prompt", RESPONSES: "input"}.get(path)
    if key is not None:
        return {"model": "m", key: "Hello", **more}
    return {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more}


@pytest.fixture(scope="module")
def retrying(stack: Any, scripted: Any, start_session: Any) -> Any:
    """Return an Envoy whose router may retry; the short pool is the scripted backend.

    The truncation risk lets 40 % of responses exceed the reserve under a declared
    limit, so a few short responses are enough for the router to send requests with a
    large limit to the short pool.
    """
    config = {
        "requests": {"retry_cut_answers": True},
        "output": {"truncation_risk": 0.4},
        "feedback": {"sample": "all"},
    }
    backends = [scripted.as_backend("short"), stack.backend("long")]
    client, _ = start_session(config, backends)
    return client


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@pytest.mark.parametrize("left", [0, 1], ids=["window full", "one token left"])
def test_an_answer_that_the_window_cut_is_asked_for_again(
    path: str, left: int, retrying: Any, scripted: Any, respond: Any, declare: Any
) -> None:
    more = {"max_tokens": declare()} if path in (MESSAGES, COMPLETIONS) else {}
    scripted.reply = [respond(200, answer(path, WINDOW - 40 - left))]
    received = len(scripted.received)
    response = retrying.post(path, question(path, **more))
    assert (response.status, response.attempts) == (200, 2)
    assert response.headers["x-standin"] == "long"
    assert "x-llm-overflow" not in response.headers
    assert len(scripted.received) == received + 1
    assert retrying.record(response).pool == "short"  # the decision


@pytest.fixture
def declare(retrying: Any, scripted: Any, respond: Any, eventually: Any) -> Any:
    """Return a function that teaches the router until requests with a limit far above
    the window go to the short pool, and returns this limit.
    """

    def learned() -> int:
        scripted.reply = [respond(200, answer(CHAT, 30, cut=False))]
        asked = question(CHAT, max_tokens=32_000)
        eventually(lambda: retrying.post(CHAT, asked).served_by == "vllm_short")
        return 32_000

    return learned


def test_a_declared_limit_that_was_not_reached_is_none(
    retrying: Any, scripted: Any, respond: Any, declare: Any
) -> None:
    limit = declare()
    scripted.reply = [respond(200, answer(CHAT, WINDOW - 40))]
    response = retrying.post(CHAT, question(CHAT, max_tokens=limit))
    assert (response.attempts, response.headers["x-standin"]) == (2, "long")


@pytest.mark.parametrize(
    ("completion", "prompt", "cut"),
    [(32_000, 40, True), (WINDOW - 40, 40, False), (500, 40, True), (9_000, 40, True)],
    ids=[
        "the client's limit",
        "ended itself",
        "a server's own limit",
        "another window",
    ],
)
def test_what_the_window_did_not_cut_passes_once(
    completion: int,
    prompt: int,
    cut: bool,
    retrying: Any,
    scripted: Any,
    respond: Any,
    declare: Any,
) -> None:
    limit = declare()
    content = answer(CHAT, completion, prompt=prompt, cut=cut)
    scripted.reply = [respond(200, content)]
    response = retrying.post(CHAT, question(CHAT, max_tokens=limit))
    assert (response.status, response.attempts) == (200, 1)
    assert response.body == content


def test_a_limit_that_the_client_reached_at_the_window_passes_once(
    retrying: Any, scripted: Any, respond: Any, declare: Any
) -> None:
    """The limit and the window end at the same token, so the long pool could add none."""
    declare()
    limit = WINDOW - 1
    content = answer(CHAT, limit, prompt=1)
    scripted.reply = [respond(200, content)]
    response = retrying.post(CHAT, question(CHAT, max_tokens=limit))
    assert (response.attempts, response.body) == (1, content)


@pytest.mark.parametrize("declares_stream", [True, False], ids=["asked", "answered"])
def test_a_stream_is_not_asked_for_again(
    declares_stream: bool, retrying: Any, scripted: Any, respond: Any
) -> None:
    content = b"data: " + answer(CHAT, WINDOW - 40) + b"\n\ndata: [DONE]\n\n"
    kind = "text/event-stream"
    scripted.reply = [respond(200, content, kind)]
    response = retrying.post(CHAT, question(CHAT, stream=declares_stream))
    assert (response.status, response.attempts) == (200, 1)
    assert response.body == content


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_an_answer_too_large_to_hold_passes(
    chunked: bool, retrying: Any, scripted: Any, respond: Any
) -> None:
    """Log probabilities can make a response arbitrarily large."""
    content = answer(CHAT, WINDOW - 40) + b" " * 4_000_000
    whole = respond(200, content)
    if chunked:
        head = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n"
        head += b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        whole = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    scripted.reply = [whole]
    response = retrying.post(CHAT, question(CHAT))
    assert (response.status, response.attempts) == (200, 1)
    assert response.body == content


@pytest.mark.parametrize("more", [{"n": 2}, {"logprobs": True}], ids=["two", "one"])
def test_several_answers_at_once_are_not_asked_for_again(
    more: dict[str, Any], retrying: Any, scripted: Any, respond: Any
) -> None:
    scripted.reply = [respond(200, answer(CHAT, WINDOW - 40))]
    response = retrying.post(CHAT, question(CHAT, **more))
    assert response.attempts == (1 if "n" in more else 2)


def test_by_default_nothing_is_asked_for_again_whatever_a_client_sends(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    content = answer(CHAT, WINDOW - 40)
    scripted.reply = [respond(200, content)]
    headers = {"x-llm-retry-cut": f"{WINDOW} 0"}
    response = scripted_client.post(CHAT, question(CHAT), headers)
    assert (response.status, response.attempts) == (200, 1)
    assert response.body == content
    assert "x-llm-retry-cut" not in scripted.received[-1].headers
