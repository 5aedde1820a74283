"""The router's limits and errors for long requests match a real vLLM's.

This module shares the servers of ``test_vllm.py``.
"""

from typing import Any

import pytest

from extproc.demo.stack.vllm_backend import MODEL_NAME

from .outside import Client, Response

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.xdist_group("vllm")]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
SHORT_WINDOW = 8192
LONG_TEXT = "all the words of a long story " * 3000
ENDS_SOON = {"stop": ["a", "e", "t", " "]}
"""Stop strings, one of which appears within a few tokens of random text."""

Fields = dict[str, Any]


def ask(client: Client, path: str, fields: Fields, pool: str = "") -> Response:
    """Send a request through the router, or directly to a pool if one is named."""
    prompt: Fields = {"messages": [{"role": "user", "content": "Hello there"}]}
    prompt = {
        COMPLETIONS: {"prompt": "Hello there"},
        RESPONSES: {"input": "Hello there"},
    }.get(path, prompt)
    body = {"model": MODEL_NAME} | prompt | fields
    if pool:
        return client.bypass().post(path, body, {"x-llm-pool": pool}, timeout=120)
    return client.post(path, body, timeout=120)


OUTPUTS = {
    "max_tokens": (CHAT, {"max_tokens": 7}, 7),
    "max_completion_tokens goes first": (
        CHAT,
        {"max_tokens": 40, "max_completion_tokens": 8},
        8,
    ),
    "completions default to 16": (COMPLETIONS, {}, 16),
    "completions ignore max_completion_tokens": (
        COMPLETIONS,
        {"max_completion_tokens": 90},
        16,
    ),
    "0 with echo": (COMPLETIONS, {"max_tokens": 0, "echo": True}, 1),
    "text": (CHAT, {"max_tokens": " 1_0 "}, 10),
    "text of a float": (CHAT, {"max_tokens": "9.0"}, 9),
    "a float": (COMPLETIONS, {"max_tokens": 9.0}, 9),
    "true": (COMPLETIONS, {"max_tokens": True}, 1),
    "min_tokens with max_tokens": (CHAT, {"min_tokens": 9, "max_tokens": 9}, 9),
    "responses": (RESPONSES, {"max_output_tokens": 2}, 2),
    "messages": (MESSAGES, {"max_tokens": 2}, 2),
    "best_of": (COMPLETIONS, {"best_of": 3, "max_tokens": 5}, 5),
    "n": (CHAT, {"n": 3, "max_tokens": 5}, 5),
}


@pytest.mark.parametrize(("path", "fields", "output"), OUTPUTS.values(), ids=OUTPUTS)
def test_as_many_tokens_are_reserved_as_vllm_generates(
    path: str, fields: Fields, output: int, vllm_client: Client
) -> None:
    response = ask(vllm_client, path, {"ignore_eos": True} | fields)

    assert response.status == 200, response.body
    usage = response.json()["usage"]
    generated = usage.get("completion_tokens") or usage.get("output_tokens")
    assert generated == output * int(fields.get("n", 1))
    record = vllm_client.record(response)
    assert record.budget_tokens is not None
    assert record.prompt_tokens is not None
    assert record.budget_tokens - record.prompt_tokens == output


def test_ignore_eos_without_a_limit_goes_to_the_end_of_the_window(
    vllm_client: Client,
) -> None:
    words = {"messages": [{"role": "user", "content": "x " * 8000}]}
    response = ask(vllm_client, CHAT, words | {"ignore_eos": True}, "short")

    assert response.json()["usage"]["total_tokens"] == SHORT_WINDOW


@pytest.mark.parametrize("limit", [16, " 16 ", 16.0])
def test_a_prompt_is_cut_to_what_the_router_reads(
    limit: Any, vllm_client: Client
) -> None:
    fields = {"prompt": LONG_TEXT, "truncate_prompt_tokens": limit, "max_tokens": 2}
    response = ask(vllm_client, COMPLETIONS, fields)

    assert response.json()["usage"]["prompt_tokens"] == 16
    record = vllm_client.record(response)
    assert (record.pool, record.prompt_tokens) == ("short", 16)


def test_a_prompt_cut_to_the_window_is_accepted_by_any(vllm_client: Client) -> None:
    fields = {"prompt": LONG_TEXT, "truncate_prompt_tokens": -1, "max_tokens": 2}
    response = ask(vllm_client, COMPLETIONS, fields, "short")

    assert (response.status, response.served_by) == (200, "vllm_short")


def ids(count: int) -> list[int]:
    return [5] * count


TOO_LONG = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": LONG_TEXT}]}),
    "completions": (COMPLETIONS, {"prompt": LONG_TEXT}),
    "token ids": (COMPLETIONS, {"prompt": ids(9000)}),
    "the window itself": (COMPLETIONS, {"prompt": ids(SHORT_WINDOW)}),
    "no room for echo": (
        COMPLETIONS,
        {"prompt": ids(SHORT_WINDOW), "max_tokens": 0, "echo": True},
    ),
    "several prompts": (COMPLETIONS, {"prompt": [ids(5), ids(9000)]}),
    "responses": (RESPONSES, {"input": LONG_TEXT, "max_output_tokens": 2}),
    "messages": (MESSAGES, {"messages": [{"role": "user", "content": LONG_TEXT}]}),
    "max_tokens": (CHAT, {"max_tokens": 9000} | ENDS_SOON),
    "min_tokens": (
        COMPLETIONS,
        {"prompt": ids(8150), "min_tokens": 60, "max_tokens": 64},
    ),
    "truncate_prompt_tokens": (COMPLETIONS, {"truncate_prompt_tokens": 10_000}),
    "cut to the window itself": (
        COMPLETIONS,
        {"prompt": LONG_TEXT, "truncate_prompt_tokens": SHORT_WINDOW},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(("path", "fields"), TOO_LONG.values(), ids=TOO_LONG)
def test_its_refusal_is_answered_by_the_long_pool(
    path: str, fields: Fields, stream: bool, vllm_client: Client
) -> None:
    if "echo" in fields and stream:
        pytest.skip("vLLM streams no echo alone")
    fields = {"max_tokens": 2, "stream": stream} | fields
    if path == RESPONSES:
        del fields["max_tokens"]
    response = ask(vllm_client, path, fields, "short")

    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        2,
    ), response.body[:500]


@pytest.mark.parametrize(
    ("path", "fields"),
    [each for name, each in TOO_LONG.items() if name not in ("several prompts",)],
    ids=[name for name in TOO_LONG if name not in ("several prompts",)],
)
def test_the_router_sends_none_of_these_to_the_short_pool(
    path: str, fields: Fields, vllm_client: Client
) -> None:
    fields = ({} if path == RESPONSES else {"max_tokens": 2}) | fields
    response = ask(vllm_client, path, fields)

    assert vllm_client.record(response).pool == "long"
    assert (response.status, response.attempts) == (200, 1)


OTHER: dict[str, tuple[str, Fields]] = {
    "temperature": (CHAT, {"temperature": -1}),
    "top_p": (CHAT, {"top_p": 5}),
    "top_k": (CHAT, {"top_k": -5}),
    "n": (CHAT, {"n": 100_000}),
    "min_tokens": (CHAT, {"min_tokens": -1}),
    "top_logprobs": (CHAT, {"logprobs": True, "top_logprobs": 100}),
    "stop": (CHAT, {"stop": ""}),
    "text as a limit": (CHAT, {"max_tokens": "the prompt exceeds max_model_len"}),
    "a fraction": (CHAT, {"max_tokens": 1.5}),
    "tool_choice": (CHAT, {"tool_choice": "nope"}),
    "a regex": (CHAT, {"structured_outputs": {"regex": "("}}),
    "no messages": (CHAT, {"messages": []}),
    "an image": (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": "data:image/png;base64,AAAA"},
                        }
                    ],
                }
            ]
        },
    ),
    "an empty prompt": (COMPLETIONS, {"prompt": ""}),
    "an unknown token": (COMPLETIONS, {"prompt": [999_999]}),
    "many prompts": (COMPLETIONS, {"prompt": ["x"] * 3000}),
    "cut below nothing": (COMPLETIONS, {"truncate_prompt_tokens": -5}),
    "cut to nothing": (COMPLETIONS, {"truncate_prompt_tokens": 0}),
    "stream_options": (CHAT, {"stream_options": {"include_usage": True}}),
    "presence_penalty": (CHAT, {"presence_penalty": 9}),
    "seed": (CHAT, {"seed": 2**70}),
    "logit_bias": (CHAT, {"logit_bias": {"999999": 1}}),
    "a thinking budget": (
        MESSAGES,
        {"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 200}},
    ),
}


@pytest.mark.parametrize(("path", "fields"), OTHER.values(), ids=OTHER)
def test_another_mistake_passes_once(
    path: str, fields: Fields, vllm_client: Client
) -> None:
    response = ask(vllm_client, path, fields, "short")

    assert (response.status, response.attempts) == (400, 1), response.body[:500]
