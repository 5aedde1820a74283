"""Decisions that leave with their route, so that the access log can return them."""

import dataclasses

import pytest

from extproc.exchange.decision_token import read_decision_token
from extproc.exchange.events import Release, RequestBody, Route
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.risk import NoMargin
from extproc.routing.router import Router

from .messages import (
    CAP,
    DUPLEX,
    LONG,
    SETTINGS,
    SHORT,
    chat,
    exchange,
    play,
    request,
    routed,
)

GIVING = dataclasses.replace(SETTINGS, decision_tokens=True)


@pytest.mark.parametrize("shadow", [False, True])
def test_a_decision_is_handed_out_with_its_route(shadow: bool) -> None:
    machine = exchange(settings=dataclasses.replace(GIVING, shadow=shadow))
    body = chat()
    step = play(machine, request(body), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Route)
    router = Router(Policy([SHORT, LONG]), Bounded(TextEma(), NoMargin()), TextRatios())
    again = read_decision_token(step.reply.decision_token, router)
    assert again is not None
    assert again.prompt_tokens == routed(step).prompt_tokens
    assert step.end


def test_a_decision_without_the_body_is_handed_out_too() -> None:
    (step,) = play(exchange(settings=GIVING), request(CAP + 1))
    assert isinstance(step.reply, Route)
    assert step.reply.decision_token


def test_a_released_decision_is_handed_out_too() -> None:
    body = chat()
    machine = exchange(settings=GIVING)
    step = play(machine, request(body, mode=DUPLEX), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Release)
    assert step.reply.decision_token


def test_a_response_that_is_looked_at_is_not_learned_from_twice() -> None:
    body = chat()
    machine = exchange(watch=True, settings=GIVING)
    step = play(machine, request(body), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Route)
    assert step.reply.decision_token == b""
    assert not step.end
