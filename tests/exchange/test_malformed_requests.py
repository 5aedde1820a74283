"""Bodies that are no valid request never raise."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.body_parser import parse_request
from extproc.exchange.openai import ENDPOINTS
from extproc.routing.policy import Reason
from extproc.routing.request import Request

from .parsed import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"messages": []}',
        b'{"messages": null}',
        b'{"messages": "Hi"}',
        b'{"messages": ["Hi"]}',
        b'{"messages": [{"content": "\\ud800"}]}',
        b'{"messages": [{"content": "\xff"}]}',
        b'{"messages": [{"content": "Hi"}]} trailing',
        b'{"messages": [{"content": ' + b"[" * 100_000,
        b'{"messages": [{"content": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
    ],
)
def test_no_request_is_unparsable(body: bytes) -> None:
    assert parse_request(CHAT, body) is Reason.UNPARSABLE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path in (COMPLETIONS, RESPONSES, EMBEDDINGS)
        for value in (None, 5, {}, [], True)
        if (path, value) != (RESPONSES, [])  # no items: left to the backend
    ],
)
def test_a_prompt_of_no_known_type_is_unparsable(path: str, value: Any) -> None:
    body = json.dumps({"prompt": value, "input": value}).encode()

    assert parse_request(path, body) is Reason.UNPARSABLE


@pytest.mark.parametrize("depth", [10, 100, 300, 900])
def test_deeply_nested_parts_do_not_raise(depth: int) -> None:
    parts = b'[{"content":' * depth + b'"x"' + b"}]" * depth

    parse_request(CHAT, b'{"messages":[{"content":' + parts + b"}]}")


@settings(max_examples=50)
@given(path=st.sampled_from(list(ENDPOINTS)), body=st.binary(max_size=100))
def test_no_bytes_raise(path: str, body: bytes) -> None:
    parse_request(path, body)


KEYS = [
    "messages",
    "system",
    "prompt",
    "input",
    "tools",
    "stream_options",
    "n",
    "model",
]


PART_KEYS = [
    "type",
    "text",
    "content",
    "source",
    "function",
    "arguments",
    "input",
    "name",
]


PARTS = st.recursive(
    JSON,
    lambda inner: st.lists(
        st.dictionaries(st.sampled_from(PART_KEYS), inner, max_size=4), max_size=3
    ),
    max_leaves=8,
)


MESSAGE = st.dictionaries(
    st.sampled_from(["content", "tool_calls", "reasoning", "refusal", "name"]),
    PARTS,
    max_size=4,
)


@settings(max_examples=40)
@given(
    path=st.sampled_from(list(ENDPOINTS)),
    body=st.dictionaries(st.sampled_from(KEYS), PARTS, max_size=5),
    messages=st.lists(MESSAGE, max_size=3),
)
def test_no_json_raises(
    path: str, body: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    request = parse_request(path, json.dumps({"messages": messages, **body}).encode())

    if isinstance(request, Request):
        assert request.sequences >= 1
        assert request.prompts >= 1
        assert request.max_tokens is None or request.max_tokens > 0


@pytest.mark.parametrize("path", ["/v1/models", "", "/v1/chat/completions/x"])
def test_a_body_for_a_path_of_no_api_is_not_parsed(path: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "Hi"}]}'

    assert isinstance(parse_request(CHAT, body), Request)
    assert parse_request(path, body) is Reason.UNPARSABLE
