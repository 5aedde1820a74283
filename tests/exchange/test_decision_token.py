"""A decision survives being written down; nothing else is read as one."""

import functools
import operator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.exchange.decision_token import read_decision_token, write_decision_token
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.request import Prompt, Request
from extproc.routing.risk import NoMargin
from extproc.routing.router import Decision, Outcome, Router

POLICY = Policy([Pool("short", 8192, 4096), Pool("long", 65536, 65536)])


def make_router() -> Router:
    return Router(POLICY, Bounded(TextEma(), NoMargin()), TextRatios())


def route(prompt: Prompt, **fields: Any) -> Decision:
    request = Request(prompt, len(prompt.text) + 50, **fields)
    return make_router().route(request)


def read(decision_token: bytes) -> Decision | None:
    return read_decision_token(decision_token, make_router())


def as_values(decision: Decision) -> object:
    features = decision.features
    if features is None:
        return decision
    arrays = (features.pairs.tolist(), features.tools_pairs.tolist())
    plain = structs.replace(features, pairs=None, tools_pairs=None)
    return structs.replace(decision, features=plain), arrays


@given(
    text=st.text(max_size=400),
    tools=st.sampled_from([b"", b'[{"name": "x"}]']),
    model=st.text(max_size=20),
    max_tokens=st.none() | st.integers(1, 1 << 31),
    images=st.integers(0, 2),
)
def test_reads_back_what_was_written(
    text: str, tools: bytes, model: str, max_tokens: int | None, images: int
) -> None:
    prompt = Prompt(text.encode(), 2, tools, int(bool(tools)), images)
    decision = route(prompt, model=model, max_tokens=max_tokens)
    again = read(write_decision_token(decision))
    assert again is not None
    assert as_values(again) == as_values(decision)


def test_learns_the_same_from_a_decision_token() -> None:
    direct, over_token = make_router(), make_router()
    request = Request(Prompt(b"Some words to learn from. " * 20), 600)
    outcome = Outcome(200, 110, 5)
    direct.learn(direct.route(request), outcome)
    decision = read(write_decision_token(over_token.route(request)))
    assert decision is not None
    over_token.learn(decision, outcome)
    assert over_token.ratios.all() == direct.ratios.all() != {}


def test_a_decision_token_is_small() -> None:
    prose = route(Prompt(b"It was a bright cold day in April, and 13 clocks. " * 500))
    assert len(write_decision_token(prose)) < 500
    everything = route(Prompt(bytes(range(256)) * 64))
    assert len(write_decision_token(everything)) < 4096


@given(st.binary(max_size=300))
def test_never_raises_on_foreign_bytes(data: bytes) -> None:
    assert read(data) is None


@given(position=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_damaged_decision_token_is_refused_or_stays_in_bounds(
    position: int, value: int
) -> None:
    decision_token = bytearray(
        write_decision_token(route(Prompt("héllo wörld 123".encode() * 9)))
    )
    decision_token[position % len(decision_token)] = value
    decision = read(bytes(decision_token))
    if decision is not None and decision.features is not None:
        features = decision.features
        assert features.pairs.sum() <= features.text_bytes
        assert features.pairs.min() >= 0


@pytest.mark.parametrize(
    ("index", "value"),
    [
        ((0,), 1),
        ((1,), 16),
        ((2, 0), "unheard-of"),
        ((2, 1), "because"),
        ((2, 2), "invented"),
        ((2, 5), -1),
        ((2, 8), 0),
        ((2, 9), 0),
        ((5,), [10, 0, 1, 0, [[1, 1], [1, 1]], [[], []], []]),
        ((5,), [10, 0, 1, 0, [[1], [11]], [[], []], []]),
        ((5,), [10, 0, 1, 0, [[1024], [1]], [[], []], []]),
    ],
    ids=[
        "another version",
        "other byte classes",
        "no such pool",
        "no such reason",
        "no such category",
        "negative",
        "no prompts",
        "no sequences",
        "a pair twice",
        "more pairs than text",
        "no such pair",
    ],
)
def test_refuses_what_does_not_add_up(index: tuple[int, ...], value: object) -> None:
    fields = msgspec.msgpack.decode(write_decision_token(route(Prompt(b"hello you"))))
    *path, last = index
    functools.reduce(operator.getitem, path, fields)[last] = value
    assert read(msgspec.msgpack.encode(fields)) is None


def test_pairs_are_whole_numbers_again() -> None:
    decision = read(write_decision_token(route(Prompt(b"abc"))))
    assert decision is not None
    assert decision.features is not None
    assert decision.features.pairs.dtype == np.int64
