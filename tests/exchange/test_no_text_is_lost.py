"""Ten thousand tokens of text count, wherever they are in a request.

Each body below contains every part and item of its API. The test replaces each text in
a body with a long text. It also adds the long text to the fields of each object and to
the end of each list. Each time, either the estimate must far exceed that of the
original body, or vLLM would reject the request.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.request import Request
from extproc.routing.router import Router

Place = tuple[str | int, ...]

BIG = "The quick brown fox jumps over the lazy dog again. " * 900
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "string", "description": "x", "enum": ["p", "q"]}
            },
        },
        "strict": True,
    },
}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t"},
                        {
                            "type": "image_url",
                            "image_url": {"url": PNG, "detail": "low"},
                        },
                        {
                            "type": "input_audio",
                            "input_audio": {"data": "AAAA", "format": "wav"},
                        },
                        {
                            "type": "file",
                            "file": {
                                "file_id": "x",
                                "filename": "n",
                                "file_data": "data:text/plain;base64,AAAA",
                            },
                        },
                        {"type": "video_url", "video_url": {"url": "http://x/y.mp4"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "r",
                    "refusal": "no",
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                    "audio": {"id": "a"},
                    "function_call": {"name": "f", "arguments": "{}"},
                },
                {
                    "role": "tool",
                    "tool_call_id": "1",
                    "content": [{"type": "text", "text": "x"}],
                    "name": "f",
                },
                {"role": "user", "content": "u"},
            ],
            "tools": [TOOL],
            "documents": [{"title": "a", "text": "b"}],
            "chat_template_kwargs": {"x": "y"},
            "functions": [{"name": "f", "description": "d", "parameters": {}}],
            "max_tokens": 5,
        }
    ],
    "/v1/completions": [
        {"model": "m", "prompt": "x", "suffix": "z", "max_tokens": 5},
        {"model": "m", "prompt": ["x", "y"], "max_tokens": 5},
    ],
    "/v1/responses": [
        {
            "model": "m",
            "instructions": "i",
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "t"},
                        {"type": "input_image", "image_url": PNG},
                        {
                            "type": "input_file",
                            "filename": "f",
                            "file_data": "data:application/pdf;base64,AAAA",
                        },
                    ],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "id": "m1",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": []},
                        {"type": "refusal", "refusal": "r"},
                    ],
                },
                {
                    "type": "reasoning",
                    "id": "r1",
                    "summary": [{"type": "summary_text", "text": "s"}],
                    "content": [{"type": "reasoning_text", "text": "c"}],
                },
                {
                    "type": "reasoning",
                    "id": "r2",
                    "summary": [{"type": "summary_text", "text": "s"}],
                },
                {
                    "type": "function_call",
                    "call_id": "c",
                    "name": "f",
                    "arguments": "{}",
                },
                {"type": "function_call_output", "call_id": "c", "output": "o"},
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_text", "text": "o"}],
                },
                {
                    "type": "custom_tool_call",
                    "call_id": "c",
                    "name": "f",
                    "input": "in",
                },
                {"type": "custom_tool_call_output", "call_id": "c", "output": "o"},
                {
                    "type": "mcp_call",
                    "id": "1",
                    "name": "n",
                    "server_label": "s",
                    "arguments": "{}",
                    "output": "o",
                    "error": "e",
                },
                {
                    "type": "mcp_list_tools",
                    "id": "1",
                    "server_label": "s",
                    "tools": [
                        {
                            "name": "n",
                            "description": "d",
                            "input_schema": {"type": "object"},
                        }
                    ],
                },
                {
                    "type": "mcp_approval_response",
                    "approval_request_id": "a",
                    "approve": True,
                    "reason": "r",
                },
                {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
                {
                    "type": "local_shell_call",
                    "call_id": "c",
                    "action": {"type": "exec", "command": ["ls"], "env": {"A": "b"}},
                },
                {"type": "local_shell_call_output", "id": "c", "output": "o"},
                {
                    "type": "code_interpreter_call",
                    "id": "c",
                    "code": "x",
                    "outputs": [{"type": "logs", "logs": "l"}],
                },
                {
                    "type": "web_search_call",
                    "id": "w",
                    "action": {
                        "type": "search",
                        "query": "q",
                        "sources": [{"type": "url", "url": "u"}],
                    },
                },
                {
                    "type": "file_search_call",
                    "id": "w",
                    "queries": ["q"],
                    "results": [{"text": "t", "filename": "f"}],
                },
                {
                    "type": "computer_call",
                    "call_id": "c",
                    "action": {"type": "type", "text": "t"},
                },
                {
                    "type": "computer_call_output",
                    "call_id": "c",
                    "output": {"type": "computer_screenshot", "image_url": PNG},
                },
                {"type": "image_generation_call", "id": "i", "result": "AAAA"},
                {
                    "type": "apply_patch_call",
                    "call_id": "c",
                    "operation": {"type": "update_file", "diff": "d", "path": "p"},
                },
                "plain",
            ],
            "tools": [
                {"type": "function", "name": "f", "description": "d", "parameters": {}},
                {"type": "mcp", "server_label": "s", "server_description": "x"},
            ],
            "prompt": {"id": "p", "variables": {"a": "b"}},
            "max_output_tokens": 5,
        }
    ],
    "/v1/messages": [
        {
            "model": "m",
            "max_tokens": 5,
            "system": [
                {"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t", "citations": []},
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PNG.partition(",")[2],
                            },
                        },
                        {
                            "type": "document",
                            "source": {
                                "type": "text",
                                "media_type": "text/plain",
                                "data": "d",
                            },
                            "title": "t",
                            "context": "c",
                        },
                        {
                            "type": "document",
                            "source": {
                                "type": "content",
                                "content": [{"type": "text", "text": "x"}],
                            },
                        },
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "redacted_thinking", "data": "AAAA"},
                        {
                            "type": "tool_use",
                            "id": "1",
                            "name": "f",
                            "input": {"a": "b"},
                        },
                        {
                            "type": "server_tool_use",
                            "id": "2",
                            "name": "web_search",
                            "input": {"query": "q"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "text", "text": "x"}],
                            "is_error": False,
                        },
                        {
                            "type": "web_search_tool_result",
                            "tool_use_id": "2",
                            "content": [
                                {
                                    "type": "web_search_result",
                                    "title": "t",
                                    "url": "u",
                                    "encrypted_content": "AAAA",
                                    "page_age": "p",
                                }
                            ],
                        },
                        {
                            "type": "search_result",
                            "source": "u",
                            "title": "t",
                            "content": [{"type": "text", "text": "x"}],
                        },
                    ],
                },
            ],
            "tools": [
                {
                    "name": "f",
                    "description": "d",
                    "input_schema": {
                        "type": "object",
                        "properties": {"a": {"type": "string", "description": "x"}},
                    },
                }
            ],
            "mcp_servers": [{"name": "n"}],
        }
    ],
    "/v1/embeddings": [
        {"model": "m", "input": "x"},
        {"model": "m", "input": ["x", "y"]},
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ],
    "/v1/rerank": [
        {"model": "m", "query": "q", "documents": ["a", "b"]},
        {
            "model": "m",
            "query": "q",
            "documents": {"content": [{"type": "text", "text": "a"}]},
        },
    ],
    "/v1/score": [
        {"model": "m", "text_1": "a", "text_2": ["b", "c"]},
        {"model": "m", "queries": ["a"], "documents": ["b"]},
        {"model": "m", "data_1": "a", "data_2": "b"},
    ],
}

REACHES_NO_PROMPT = {
    # prompt_parts.py and openai.py list these places, with the sources.
    *("model", "detail", "status", "annotations", "cache_control", "citations"),
    *("signature", "encrypted_content"),
}
UNRENDERED: set[tuple[str, Place]] = {
    # This reasoning item has content, so its summary is only for the client.
    ("/v1/responses", ("input", 2, "summary")),
    ("/v1/messages", ("messages", 1, "content", 1)),  # redacted thinking, encrypted
}
BESIDE_PARTS: set[Place] = {("documents",)}
"""A document to rerank that has several parts; vLLM uses only the field ``content``."""
ROOT_NAMES = {"text"}
"""A field of the body that sets the format of the output in one API."""


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield place, value
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from places(each, (*place, key))


def put(body: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(body)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def with_text(value: Any, *, root: bool) -> Iterator[Any]:
    """Yield copies of a value to which text is added in every possible way."""
    if isinstance(value, str):
        yield BIG
    if isinstance(value, list):
        yield from ([*value, each] for each in (BIG, {"unheard_of": BIG}))
    if isinstance(value, dict):
        inner = [{"type": "text", "text": BIG}], {"a": [{"b": BIG}]}, [BIG]
        for name in ("unheard_of", "text", "content", "title", "description", "value"):
            if not (root and name in ROOT_NAMES):
                yield value | {name: BIG}
        for name in ("unheard_of", "content"):
            yield from (value | {name: each} for each in inner)
        if not root:
            yield value | {BIG: "x"}


def estimate(path: str, body: Any) -> int | None:
    request = parse_request(path, json.dumps(body).encode())
    if not isinstance(request, Request):
        return None
    pools = [Pool("short", 8192, 8192), Pool("long", 1 << 18, 1 << 18)]
    router = Router(Policy(pools), Bounded(TextEma()), TextRatios())
    return router.route(request).prompt_tokens


def is_left_out(path: str, place: Place) -> bool:
    begins = [place[:length] for length in range(len(place) + 1)]
    return bool(REACHES_NO_PROMPT.intersection(place)) or any(
        (path, each) in UNRENDERED for each in begins
    )


CASES = [(path, body) for path, bodies in BODIES.items() for body in bodies]


@pytest.mark.parametrize(("path", "body"), CASES, ids=[path for path, _ in CASES])
def test_text_at_any_place_counts(path: str, body: dict[str, Any]) -> None:
    before = estimate(path, body)
    assert before is not None
    lost = []
    for place, value in places(body):
        if is_left_out(path, place):
            continue
        if isinstance(value, dict) and place in BESIDE_PARTS:
            continue
        for changed in with_text(value, root=not place):
            after = estimate(path, put(body, place, changed))
            if after is not None and after < before + 5000:
                lost.append((place, str(changed)[:80]))
    assert lost == []
