"""Decoding restores an encoded decision, and no other bytes decode to a decision."""

import functools
import operator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.exchange.decision_token import read_decision_token, write_decision_token
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.regressors import (
    REPETITION,
    TEXT_COUNTED,
    TOOLS_COUNTED,
    VECTOR_TERMS,
)
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
    # Only the category depends on classes and indentation, and the decision already
    # contains the category.
    plain = structs.replace(features, terms=None, classes=(), indent_bytes=0)
    return structs.replace(decision, features=plain), features.terms.tolist()


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
        counted = features.terms[TEXT_COUNTED]
        assert counted.sum() <= features.text_bytes + len(VECTOR_TERMS)
        assert counted.min() >= 0


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
        ((-1,), [10, 0, 1, 0, [[50, 50], [1, 1]], []]),
        ((-1,), [10, 0, 1, 0, [[50], [11 + len(VECTOR_TERMS)]], []]),
        ((-1,), [10, 0, 1, 0, [[REPETITION], [11]], []]),
        ((-1,), [10, 9, 1, 1, [[TOOLS_COUNTED.start], [10 + len(VECTOR_TERMS)]], []]),
        ((-1,), [10, 0, 1, 0, [[0], [1]], []]),
        ((-1,), [10, 0, 1, 0, [[REPETITION + 1], [1]], []]),
        ((-1,), [10, 0, 1, 0, [[], []], [[0, 9, [[50], [400]]]]]),
        ((-1,), [10, 0, 1, 0, [[], []], [[0, 9, [[], []]], [0, 9, [[], []]]]]),
    ],
    ids=[
        "another version",
        "other terms",
        "no such pool",
        "no such reason",
        "no such category",
        "negative",
        "no prompts",
        "no sequences",
        "a term twice",
        "more than the text",
        "more repetitions than text",
        "more than the tools",
        "a term that is not counted",
        "a term that follows from others",
        "more than the text of a kind",
        "a kind twice",
    ],
)
def test_refuses_what_does_not_add_up(index: tuple[int, ...], value: object) -> None:
    fields = msgspec.msgpack.decode(write_decision_token(route(Prompt(b"hello you"))))
    *path, last = index
    functools.reduce(operator.getitem, path, fields)[last] = value
    assert read(msgspec.msgpack.encode(fields)) is None


def test_reads_features_that_add_up() -> None:
    fields = msgspec.msgpack.decode(write_decision_token(route(Prompt(b"hello you"))))
    terms = [[TOOLS_COUNTED.start, 50, REPETITION], [9, 10, 10]]
    fields[-1] = [10, 9, 1, 1, terms, [[0, 9, [[50], [9]]]]]
    decision = read(msgspec.msgpack.encode(fields))
    assert decision is not None
    assert decision.features is not None
    assert decision.features.terms[REPETITION] == 10


def test_text_that_is_sampled_survives_too() -> None:
    decision = route(
        Prompt("Ein Satz, der nicht endet, 12 Wörter weiter. ".encode() * 9000)
    )
    again = read(write_decision_token(decision))
    assert again is not None
    assert as_values(again) == as_values(decision)
