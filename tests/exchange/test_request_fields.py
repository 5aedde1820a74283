"""Fields of a request besides its prompt."""

from typing import Any

import pytest

from extproc.exchange.limits import MAX_OUTPUT_TOKENS
from extproc.exchange.openai import ENDPOINTS
from extproc.routing.request import MAX_MODEL_CHARS

from .parsed import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    parse,
    read,
    user,
)


def test_a_list_of_prompts_says_how_many() -> None:
    assert parse(COMPLETIONS, prompt=["a", "b", "c"]).prompts == 3
    assert parse(COMPLETIONS, prompt=[1, 2, 3]).prompts == 1


def test_embeddings_generate_nothing() -> None:
    assert not parse(EMBEDDINGS, input="a").generates
    assert not parse(EMBEDDINGS, messages=[user("a")]).generates
    assert parse(COMPLETIONS, prompt="a").generates


@pytest.mark.parametrize(
    ("path", "declared", "limit"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": None}, 7),
        (COMPLETIONS, {"max_tokens": 7}, 7),
        (RESPONSES, {"max_output_tokens": 9}, 9),
        (RESPONSES, {"max_tokens": 7}, None),
        (MESSAGES, {"max_tokens": 7}, 7),
        (EMBEDDINGS, {"max_tokens": 7}, None),
        (CHAT, {"max_tokens": 8.0}, 8),
        (CHAT, {"max_tokens": "8"}, 8),
        (CHAT, {"max_tokens": 8.5}, None),
        (CHAT, {"max_tokens": "8x"}, None),
        (CHAT, {"max_tokens": "٨"}, None),
        (CHAT, {"max_tokens": 0}, None),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": True}, 1),
        (CHAT, {"max_tokens": [8]}, None),
        (CHAT, {"max_tokens": {"a": 1}}, None),
        (CHAT, {"max_tokens": 1e300}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": 1 << 40}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": 10**30}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": "9" * 400}, MAX_OUTPUT_TOKENS),
    ],
)
def test_the_declared_output_limit(
    path: str, declared: dict[str, Any], limit: int | None
) -> None:
    body = {"messages": [user("Hi")], "prompt": "Hi", "input": "Hi"}

    assert parse(path, **body, **declared).max_tokens == limit


@pytest.mark.parametrize(
    ("declared", "sequences"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": -3}, 1),
        ({"n": []}, 1),
    ],
)
def test_sequences_side_by_side(declared: dict[str, Any], sequences: int) -> None:
    assert parse(COMPLETIONS, prompt="Hi", **declared).sequences == sequences


def test_streaming_and_its_options() -> None:
    options = {"include_usage": True}

    assert not parse(COMPLETIONS, prompt="Hi").stream
    assert parse(COMPLETIONS, prompt="Hi", stream=True).stream
    assert parse(COMPLETIONS, prompt="Hi", stream_options=options).asks_usage
    for other in (None, [], {}, {"include_usage": False}, {"include_usage": "yes"}):
        assert not parse(COMPLETIONS, prompt="Hi", stream_options=other).asks_usage


def test_model_is_text_or_nothing() -> None:
    assert parse(COMPLETIONS, prompt="Hi", model="llama").model == "llama"
    assert parse(COMPLETIONS, prompt="Hi", model=["llama"]).model == ""


def test_a_model_s_name_is_kept_up_to_its_limit() -> None:
    for sent in (MAX_MODEL_CHARS, MAX_MODEL_CHARS + 1, 70_000):
        request = parse(CHAT, model="m" * sent, messages=[user("Hi")])
        assert request.model == "m" * MAX_MODEL_CHARS


def test_body_bytes_are_those_of_the_body() -> None:
    body = b'{"prompt" :  "Hi"}'

    request = read(COMPLETIONS, body)

    assert request.body_bytes == len(body)


def test_only_openai_streams_know_stream_options() -> None:
    asked = {path for path, each in ENDPOINTS.items() if each.stream_options}
    assert asked == {CHAT, COMPLETIONS}
