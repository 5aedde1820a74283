"""Several models: each request stays within its model's pools, or is not routed."""

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.exchange.deciding import Decider
from extproc.exchange.events import (
    BodyMode,
    Continue,
    NotRouted,
    Release,
    RequestBody,
    RequestTrailers,
    Route,
    Step,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.bound import Bounded
from extproc.routing.models import ModelRouter
from extproc.routing.policy import Policy, Pool, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.risk import NoMargin
from extproc.routing.router import Router

from .messages import CAP, DUPLEX, SETTINGS, chat, play, request, routed, sent_on

ONE = (Pool("a-short", 1000, 1000, "a"), Pool("a-long", 8000, 8000, "a"))
TWO = (Pool("b", 4000, 4000, "b"),)
WITH_HEADER = replace(SETTINGS, model_header="x-model")
MODES = [*BodyMode, None]


def exchange(
    settings: ExchangeSettings = SETTINGS, *, default: bool = False
) -> Exchange:
    learned = Bounded(TextEma(), NoMargin()), TextRatios()
    one, two = (
        Router(Policy(pools), *learned, model=pools[0].model) for pools in (ONE, TWO)
    )
    unknown = Router(two.policy, *learned, model="other") if default else None
    router = ModelRouter([one, two], [("a-lora", "a")], unknown)
    return Exchange(Decider(router, settings, lambda decision: False))


def ask(machine: Exchange, body: bytes, mode: BodyMode | None, **headers: Any) -> Step:
    return play(machine, request(body, mode=mode, **headers), RequestBody(body, True))[
        -1
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("model", "pool"), [("a", "a-short"), ("a-lora", "a-short"), ("b", "b")]
)
def test_a_request_goes_to_its_model_in_every_mode(
    mode: BodyMode | None, model: str, pool: str
) -> None:
    step = ask(exchange(), chat(model=model, max_tokens=5), mode)
    decision = routed(step)
    assert (decision.pool.name, decision.pool.model) == (pool, model[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", [chat(model="c"), b"not json", chat(model="")])
def test_a_request_for_no_model_is_left_on_its_route(
    mode: BodyMode | None, body: bytes
) -> None:
    machine = exchange()
    steps = play(machine, request(body, mode=mode), RequestBody(body, True))
    assert steps[-1].not_routed is NotRouted.UNKNOWN_MODEL
    assert steps[-1].decided is None
    assert machine.decision is None
    if mode is DUPLEX:
        assert sent_on(steps) == body
        assert isinstance(steps[-1].reply, Release)
        assert steps[-1].reply.decision is None
    else:
        assert steps[-1].reply == Continue()
        assert steps[-1].end


def test_full_duplex_that_ends_in_trailers_loses_nothing() -> None:
    body = chat(model="c")
    steps = play(
        exchange(),
        request(body, mode=DUPLEX),
        RequestBody(body),
        RequestTrailers(),
    )
    assert sent_on(steps) == body
    assert steps[-1].not_routed is NotRouted.UNKNOWN_MODEL


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.BUFFERED, None])
def test_a_body_over_the_cap_names_no_model(mode: BodyMode | None) -> None:
    large = request(CAP + 1, mode=mode)
    (step,) = play(exchange(), large)
    assert step == Step(Continue(), True, not_routed=NotRouted.UNKNOWN_MODEL)
    (step,) = play(exchange(default=True), large)
    assert routed(step).pool.name == "b"


def test_a_header_names_the_model_of_a_body_that_is_not_read() -> None:
    (step,) = play(
        exchange(WITH_HEADER), request(CAP + 1, mode=BodyMode.NONE, x_model="a-lora")
    )
    assert isinstance(step.reply, Route)
    assert routed(step).pool.name == "a-long"
    assert routed(step).reason is Reason.TOO_LARGE
    unreadable = ask(exchange(WITH_HEADER), b"not json", BodyMode.NONE, x_model="a")
    assert routed(unreadable).pool.name == "a-long"


@pytest.mark.parametrize(
    ("header", "model", "pool"),
    [("a", "b", "a-short"), ("unknown", "b", "b"), ("", "b", "b")],
)
def test_the_header_counts_before_the_body_if_it_names_a_model(
    header: str, model: str, pool: str
) -> None:
    body = chat(model=model, max_tokens=5)
    step = ask(exchange(WITH_HEADER), body, BodyMode.NONE, x_model=header)
    assert routed(step).pool.name == pool


def test_the_header_is_read_only_if_it_is_configured() -> None:
    assert b"x-model" in WITH_HEADER.headers_read
    step = ask(exchange(), chat(model="b"), BodyMode.NONE, x_model="a")
    assert routed(step).pool.name == "b"


def test_azure_s_path_names_the_model() -> None:
    path = "/openai/deployments/a-lora/chat/completions"
    (step,) = play(exchange(), request(CAP + 1, mode=BodyMode.NONE, path=path))
    assert routed(step).pool.name == "a-long"


@pytest.mark.parametrize(
    ("model", "learned_as"),
    [("lora-7", "base"), ("alias", "base"), ("base", "base"), ("other", "other")],
)
def test_names_of_one_base_are_learned_together(model: str, learned_as: str) -> None:
    learned = Bounded(TextEma(), NoMargin()), TextRatios()
    bases = {"base": "base", "alias": "base", "lora-7": "base"}
    router = Router(Policy(ONE), *learned)
    decider = Decider(router, SETTINGS, lambda decision: True, bases=lambda: bases)
    decision = routed(ask(Exchange(decider), chat(model=model), None))
    assert decision.model == learned_as


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize(
    ("named", "pool"), [("", "a-short"), ("b", "b"), ("unknown", "a-short")]
)
def test_a_kept_response_is_asked_for_where_such_are_kept(
    named: str, pool: str, default: bool
) -> None:
    """A response's identifier names no model, so a header or the configured pool
    decides.
    """
    settings = replace(WITH_HEADER, responses_pool="a-short")
    machine = exchange(settings, default=default)
    asked = request(None, path="/v1/responses/r", method="GET", end=True, x_model=named)
    (step,) = play(machine, asked)
    assert routed(step).pool.name == pool


def test_a_kept_response_of_no_known_model_is_left_on_its_route() -> None:
    asked = request(None, path="/v1/responses/r", method="GET", end=True)
    (step,) = play(exchange(), asked)
    assert step.not_routed is NotRouted.UNKNOWN_MODEL


@pytest.mark.parametrize(("model", "reason"), [("a", "within"), ("b", "stored")])
def test_what_does_not_say_so_is_kept_by_the_model_that_keeps(
    model: str, reason: str
) -> None:
    body = json.dumps({"model": model, "input": "Hi", "max_output_tokens": 9}).encode()
    machine = exchange(replace(SETTINGS, responses_pool="b"))
    head = request(body, path="/v1/responses")
    decision = routed(play(machine, head, RequestBody(body, True))[-1])
    assert decision.reason.startswith(reason)
