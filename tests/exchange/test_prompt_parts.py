"""Text that reaches no prompt, or may not reach it, and reasoning."""

import json
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

WORDS = "The quick brown fox jumps over the lazy dog again. " * 1000
"""A text of about 11,000 tokens."""


POLICY = Policy([Pool("short", 8192, 8192), Pool("long", 1 << 20, 1 << 20)])
ROUTER = Router(POLICY, Bounded(TextEstimator()), TextRatios())


def route(path: str, body: Any) -> Decision:
    request = parse_request(path, json.dumps(body).encode())
    assert isinstance(request, Request), request
    return ROUTER.route(request)


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
