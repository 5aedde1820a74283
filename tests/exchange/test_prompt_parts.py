"""Every text that may reach the prompt counts, in every part of the body."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from extproc.exchange.body_parser import parse_request
from extproc.exchange.prompt_parts import MAX_IDENTIFIER_CHARS
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import OptionalKind, Request
from extproc.routing.router import Decision, Router

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
SHORT, LONG = Pool("short", 8192, 8192), Pool("long", 1 << 20, 1 << 20)

WORDS = "The quick brown fox jumps over the lazy dog again. " * 1000
"""A text of about 11,000 tokens."""

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": "sky"}'},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at it.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
IMAGE = "data:image/png;base64,iVBORw0KGgo="

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        CHAT,
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "name": "ann", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "<think>a</think>b",
                    "reasoning_content": "hmm",
                    "reasoning": "oh",
                    "refusal": "no",
                    "tool_calls": [CALL],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "And?"},
                        "so",
                        {"type": "image_url", "image_url": {"url": IMAGE}},
                        {"image_url": IMAGE, "uuid": "1", "caption": "a sky"},
                        {"type": "refusal", "refusal": "no"},
                        {"type": "thinking", "thinking": "well"},
                        {
                            "type": "of another API",
                            "text": "t",
                            "body": ["x", {"y": "z"}],
                        },
                    ],
                },
            ],
            "tools": [TOOL],
            "documents": [{"title": "T", "text": "D"}],
            "chat_template": "{{ messages }}",
            "chat_template_kwargs": {
                "documents": [{"text": "E"}],
                "enable_thinking": True,
                "note": "n",
            },
            "functions": [{"name": "old", "description": "way"}],
            "extra": {"context": ["c", {"deep": "d"}]},
        },
    ),
    "completion": (COMPLETIONS, {"prompt": "Once", "suffix": "end", "context": "c"}),
    "completions": (COMPLETIONS, {"prompt": ["Once", "Upon a time"], "context": "c"}),
    "embedding": (EMBEDDINGS, {"input": ["Once", "Upon a time"], "instruct": "i"}),
    "embedding-chat": (EMBEDDINGS, {"messages": [{"role": "user", "content": "Hi"}]}),
    "responses": (
        RESPONSES,
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "message", "role": "assistant", "content": "b"},
                {"type": "reasoning", "summary": [{"type": "s", "text": "why"}]},
                {
                    "type": "reasoning",
                    "content": [{"type": "reasoning_text", "text": "why"}],
                    "summary": [],
                },
                {
                    "type": "function_call",
                    "name": "f",
                    "arguments": "{}",
                    "call_id": "1",
                },
                {"type": "function_call_output", "call_id": "1", "output": "42"},
                {
                    "type": "function_call_output",
                    "call_id": "1",
                    "output": [{"text": "4"}],
                },
                {"type": "custom_tool_call", "name": "g", "input": "code"},
                {"type": "custom_tool_call_output", "output": "done"},
                {"type": "mcp_call", "name": "h", "arguments": "{}", "output": "o"},
                {"type": "shell_call", "action": {"commands": ["ls"]}},
                {
                    "type": "code_interpreter_call",
                    "code": "1+1",
                    "outputs": [{"logs": "2"}],
                },
                {"type": "web_search_call", "action": {"query": "q"}},
                {
                    "type": "file_search_call",
                    "queries": ["q"],
                    "results": [{"text": "r"}],
                },
                {
                    "type": "mcp_list_tools",
                    "tools": [{"name": "t", "description": "d"}],
                },
                {"type": "apply_patch_call", "operation": {"diff": "+"}},
            ],
            "previous_input_messages": [{"role": "user", "content": "before"}],
            "tools": [{"type": "function", "name": "f", "description": "d"}],
        },
    ),
    "responses-text": (RESPONSES, {"input": "Hi", "prompt": {"variables": {"a": "b"}}}),
    "messages": (
        MESSAGES,
        {
            "system": [{"type": "text", "text": "S"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hmm", "signature": "x"},
                        {
                            "type": "tool_use",
                            "id": "1",
                            "name": "f",
                            "input": {"x": "y"},
                        },
                        {"type": "server_tool_use", "name": "s", "input": {"q": "r"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "text", "text": "42"}],
                        },
                        {
                            "type": "document",
                            "title": "T",
                            "context": "C",
                            "source": {"type": "text", "data": "D"},
                        },
                        {
                            "type": "search_result",
                            "title": "T",
                            "source": "s",
                            "content": [{"type": "text", "text": "r"}],
                        },
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {}}],
        },
    ),
}

NOT_PROMPT = {"model", "signature"}
"""Fields in ``BODIES`` whose text never reaches the prompt."""


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each text in a body."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        for position, each in enumerate(value):
            yield from texts(each, (*path, position))
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in NOT_PROMPT:
                yield from texts(each, (*path, key))


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each object in a body, including the body itself."""
    if isinstance(value, list):
        for position, each in enumerate(value):
            yield from objects(each, (*path, position))
    elif isinstance(value, dict):
        yield path
        for key, each in value.items():
            yield from objects(each, (*path, key))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a body with another value at the given path."""
    body = copy.deepcopy(body)
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return body


def at(body: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        body = body[step]
    return body


@cache
def make_router() -> Router:
    return Router(Policy([SHORT, LONG]), Bounded(TextEstimator()), TextRatios())


def route(path: str, body: Any) -> Decision:
    request = parse_request(path, json.dumps(body).encode())
    assert isinstance(request, Request), request
    return make_router().route(request)


PLACES = [
    pytest.param(name, place, id=f"{name}:{'.'.join(map(str, place))}")
    for name, (_, body) in BODIES.items()
    for place in texts(body)
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_no_text_is_silently_nothing(name: str, place: tuple[Any, ...]) -> None:
    path, body = BODIES[name]
    text = at(body, place)
    before = route(path, body)
    after = route(path, changed(body, place, f"{text} {WORDS}"))

    if text.startswith("data:"):
        return  # other parts of an image are not text
    assert after.prompt_tokens - before.prompt_tokens > 4000
    assert after.bound_tokens > 8192
    assert after.pool is LONG


NEW_KEYS = [
    pytest.param(name, place, id=f"{name}:{'.'.join(map(str, place))}")
    for name, (_, body) in BODIES.items()
    for place in objects(body)
]


@pytest.mark.parametrize(("name", "place"), NEW_KEYS)
@pytest.mark.parametrize(
    "value",
    [WORDS, [WORDS], {"of": {"any": [1, WORDS]}}, [{"type": "text", "text": WORDS}]],
    ids=["text", "list", "object", "parts"],
)
def test_a_field_that_nobody_named_counts(
    name: str, place: tuple[Any, ...], value: Any
) -> None:
    path, body = BODIES[name]
    after = route(path, changed(body, (*place, "unheard_of"), value))

    before = route(path, body)
    assert after.prompt_tokens - before.prompt_tokens > 4000
    assert after.pool is LONG


LEFT_OUT = {
    "metadata": {"note": WORDS},
    "user": WORDS,
    "response_format": {"type": "json_schema", "json_schema": {"description": WORDS}},
    "structured_outputs": {"regex": WORDS},
    "guided_json": {"description": WORDS},
    "logit_bias": {str(token): 1 for token in range(5000)},
    "stop": [WORDS],
    "bad_words": [WORDS],
    "prompt_cache_key": WORDS,
    "kv_transfer_params": {"blocks": WORDS},
}


@pytest.mark.parametrize("field", LEFT_OUT)
def test_what_reaches_no_prompt_is_left_out(field: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}

    assert route(CHAT, body | {field: LEFT_OUT[field]}).prompt_tokens < 100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"chat_template": "x", "messages": [{"content": "Hi"}]}),
        (
            CHAT,
            {
                "chat_template_kwargs": {"chat_template": "x"},
                "messages": [{"content": "Hi"}],
            },
        ),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "1"}]}),
        (RESPONSES, {"input": "Hi", "prompt": {"id": "p"}}),
        (RESPONSES, {"input": "Hi", "previous_response_id": "r"}),
        (RESPONSES, {"input": "Hi", "conversation": {"id": "c"}}),
    ],
    ids=[
        "template",
        "template-kwargs",
        "embeddings",
        "reference",
        "stored-prompt",
        "history",
        "conversation",
    ],
)
def test_what_cannot_be_estimated_teaches_nothing(path: str, body: Any) -> None:
    assert route(path, body).features is None


def test_an_identifier_counts_once_it_is_longer_than_one() -> None:
    def tokens(identifier: str) -> int:
        message = {"role": "tool", "tool_call_id": identifier, "content": "blue"}
        return route(CHAT, {"messages": [message]}).prompt_tokens

    assert tokens("x" * MAX_IDENTIFIER_CHARS) == tokens("")
    assert tokens("x y" * MAX_IDENTIFIER_CHARS) > tokens("")


# Reasoning.


def reasoning_kinds(path: str, body: Any) -> dict[str, bytes]:
    request = parse_request(path, json.dumps(body).encode())
    assert isinstance(request, Request)
    return {part.kind.name: part.text for part in request.prompt.optional}


def turn(number: int, **more: Any) -> list[dict[str, Any]]:
    answer = {"role": "assistant", "content": "a", "reasoning": f"r{number}", **more}
    return [{"role": "user", "content": "u"}, answer]


def test_reasoning_is_told_apart_by_the_users_last_message() -> None:
    loop = {"role": "tool", "content": "t"}
    messages = [*turn(1), *turn(2), *turn(3), loop, *turn(4)[1:]]

    assert reasoning_kinds(CHAT, {"messages": messages}) == {
        "EARLIER_REASONING": b"r1",
        "LAST_REASONING": b"r2",
        "CURRENT_REASONING": b"r3\nr4",
    }


def test_anthropic_results_of_tools_are_no_message_of_the_user() -> None:
    thinking = [{"type": "thinking", "thinking": "hmm", "signature": "x"}]
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": thinking},
        {"role": "user", "content": [{"type": "tool_result", "content": "42"}]},
    ]

    kinds = reasoning_kinds(MESSAGES, {"messages": messages})
    assert kinds == {OptionalKind.CURRENT_REASONING.name: b"hmm"}


def test_reasoning_in_the_content_is_reasoning() -> None:
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nSo."},
        {"role": "user", "content": "</think> is a mark"},
    ]

    request = parse_request(CHAT, json.dumps({"messages": messages}).encode())
    assert isinstance(request, Request)
    assert request.prompt.text == b"u\n\n\nSo.\n</think> is a mark"
    (part,) = request.prompt.optional
    assert (part.kind, part.text) == (OptionalKind.LAST_REASONING, b"\nhmm\n")


def test_reasoning_under_both_names_counts_once() -> None:
    assert reasoning_kinds(CHAT, {"messages": turn(1, reasoning_content="r1")}) == {
        "CURRENT_REASONING": b"r1"
    }


def test_a_reasoning_items_summary_stands_in_for_its_content() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}
    full = item | {"content": [{"type": "reasoning_text", "text": "c"}]}

    for each, text in ((item, b"s"), (full, b"c")):
        kinds = reasoning_kinds(RESPONSES, {"input": [each]})
        assert kinds == {"CURRENT_REASONING": text}
