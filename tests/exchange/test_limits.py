"""Token limits of requests as vLLM 0.10 to 0.32 reads them; cited paths are of 0.32."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from extproc.exchange.body_parser import parse_request
from extproc.exchange.limits import MAX_OUTPUT_TOKENS, read_integer
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
SHORT, LONG = Pool("short", 8192, 8192), Pool("long", 65536, 65536)
ALLOWED = 512

pydantic = TypeAdapter(int)


def read(path: str, **body: Any) -> Request:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    base = {COMPLETIONS: {"prompt": "Hi"}, RESPONSES: {"input": "Hi"}}.get(path, base)
    request = parse_request(path, json.dumps({**base, **body}).encode())
    assert isinstance(request, Request)
    return request


def route(path: str, **body: Any) -> Decision:
    router = Router(Policy([SHORT, LONG]), Bounded(TextEma()), TextRatios())
    return router.route(read(path, **body))


# Each value contains the path, the body, the number of reserved output tokens, whether
# the client set this number, and the pool.
LIMITS = {
    # openai/chat_completion/protocol.py: build_tok_params
    "max_tokens": (CHAT, {"max_tokens": 7}, 7, True, "short"),
    "max_completion_tokens goes first": (
        CHAT,
        {"max_tokens": 9000, "max_completion_tokens": 8},
        8,
        True,
        "short",
    ),
    "null is no limit": (CHAT, {"max_tokens": None}, ALLOWED, False, "short"),
    # vLLM 0.8 to 0.13 reads `max_completion_tokens or max_tokens`.
    "0 is no limit": (
        CHAT,
        {"max_completion_tokens": 0, "max_tokens": 9},
        9,
        True,
        "short",
    ),
    # openai/completion/protocol.py: max_tokens = 16
    "completions default to 16": (COMPLETIONS, {}, 16, True, "short"),
    # Before vLLM 0.20, null meant the rest of the window.
    "completions' null": (COMPLETIONS, {"max_tokens": None}, ALLOWED, False, "short"),
    "completions ignore max_completion_tokens": (
        COMPLETIONS,
        {"max_completion_tokens": 9000},
        16,
        True,
        "short",
    ),
    # openai/completion/protocol.py: to_sampling_params sets 1
    "0 with echo": (
        COMPLETIONS,
        {"max_tokens": 0, "echo": True},
        1,
        True,
        "short",
    ),
    # openai/responses/protocol.py: build_tok_params
    "responses": (RESPONSES, {"max_output_tokens": 9}, 9, True, "short"),
    "responses know no max_tokens": (
        RESPONSES,
        {"max_tokens": 9000},
        ALLOWED,
        False,
        "short",
    ),
    # anthropic/protocol.py
    "messages": (MESSAGES, {"max_tokens": 9000}, 9000, True, "long"),
    # sampling_params.py: min_tokens must be at most max_tokens, which is reduced to the
    # rest of the window.
    "min_tokens": (CHAT, {"min_tokens": 9000}, 9000, True, "long"),
    "min_tokens below the allowance": (
        CHAT,
        {"min_tokens": 5},
        ALLOWED,
        False,
        "short",
    ),
    "min_tokens and max_tokens": (
        CHAT,
        {"min_tokens": 5, "max_tokens": 9},
        9,
        True,
        "short",
    ),
    # v1/core/sched/utils.py: check_stop
    "ignore_eos to the window's end": (
        CHAT,
        {"ignore_eos": True},
        65536,
        True,
        "long",
    ),
    "ignore_eos to its limit": (
        CHAT,
        {"ignore_eos": True, "max_tokens": 9},
        9,
        True,
        "short",
    ),
    "ignore_eos of a completion": (
        COMPLETIONS,
        {"ignore_eos": True},
        16,
        True,
        "short",
    ),
    # Each sequence has its own window.
    "n": (CHAT, {"n": 100, "max_tokens": 1000}, 1000, True, "short"),
    "best_of": (COMPLETIONS, {"best_of": 100}, 16, True, "short"),
}


@pytest.mark.parametrize(
    ("path", "body", "output", "declared", "pool"), LIMITS.values(), ids=LIMITS
)
def test_output_limits(
    path: str, body: dict[str, Any], output: int, declared: bool, pool: str
) -> None:
    decision = route(path, **body)

    assert (decision.output_tokens, decision.declared) == (output, declared)
    assert decision.pool.name == pool


WORDS = "word " * 12_000
"""The estimator of these tests counts 15,000 tokens."""

# renderers/params.py: TokenizeParams rejects a number above the window (for embeddings
# in vLLM 0.10 and 0.11, and for all APIs since 0.12). The number -1 means the whole
# window.
CUTS = {
    "a long prompt is cut": (WORDS, 512, 512, "short", False),
    "a short prompt is not": ("Hi", 512, 9, "short", True),
    "a number above the short window": ("Hi", 10_000, 9, "long", True),
    "a number above every window": ("Hi", 100_000, 9, "long", True),
    "to the window": (WORDS, -1, 15_008, "long", True),
    "none": (WORDS, None, 15_008, "long", True),
    "text": (WORDS, " 512 ", 512, "short", False),
}


@pytest.mark.parametrize(
    ("text", "limit", "prompt_tokens", "pool", "learned"), CUTS.values(), ids=CUTS
)
def test_a_prompt_that_the_backend_cuts(
    text: str, limit: Any, prompt_tokens: int, pool: str, learned: bool
) -> None:
    messages = [{"role": "user", "content": text}]
    decision = route(
        CHAT, messages=messages, truncate_prompt_tokens=limit, max_tokens=9
    )

    assert decision.prompt_tokens == prompt_tokens
    assert decision.pool.name == pool
    assert (decision.features is not None) == learned


def test_a_prompt_cut_to_the_window_it_fills_teaches_nothing() -> None:
    messages = [{"role": "user", "content": "word " * 60_000}]
    decision = route(CHAT, messages=messages, truncate_prompt_tokens=-1)

    assert decision.pool is LONG
    assert decision.features is None


def lax(value: Any) -> int | None:
    try:
        number = pydantic.validate_python(value)
    except ValidationError:
        return None
    return max(-2 * MAX_OUTPUT_TOKENS, min(number, 2 * MAX_OUTPUT_TOKENS))


ODD = [" 9000 ", "9_000", "+9000", "9000.0", "9000.", "1__0", "_1", "1e3", "٣", "１２"]
ODD += ["\n12\t", "1_0.0", "1.0_0", "--1", "007", "-0", "", "1,000", "9" * 400]


@pytest.mark.parametrize(
    "value", [*ODD, 8.0, 8.5, True, False, 2**70, None, [], {}, -3]
)
def test_numbers_are_read_as_pydantic_reads_them(value: Any) -> None:
    assert read_integer(value) == lax(value)


@given(st.text(st.sampled_from(" +_.0123456789e"), max_size=9))
def test_any_text_is_read_as_pydantic_reads_it(text: str) -> None:
    assert read_integer(text) == lax(text)
