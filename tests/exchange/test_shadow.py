"""Shadow mode: decisions without effect."""

import dataclasses

import pytest

from extproc.exchange.events import BodyMode, Release, RequestBody, Route

from .messages import LONG, SETTINGS, chat, exchange, play, request, routed, send


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.FULL_DUPLEX_STREAMED])
def test_in_shadow_mode_the_decision_is_marked_and_all_else_is_the_same(
    mode: BodyMode,
) -> None:
    body = chat(max_tokens=20_000)
    events = (request(body, mode=mode), RequestBody(body, True))
    shadow = dataclasses.replace(SETTINGS, shadow=True)
    routing = play(exchange(), *events)
    shadowing = play(exchange(settings=shadow), *events)
    for routed_step, shadow_step in zip(routing, shadowing, strict=True):
        assert shadow_step.end == routed_step.end
    reply = shadowing[-1].reply
    assert isinstance(reply, Route | Release)
    assert reply.shadow
    assert routed(shadowing[-1]).pool == routed(routing[-1]).pool == LONG


def test_in_shadow_mode_what_is_not_read_is_marked_too() -> None:
    machine = exchange(settings=dataclasses.replace(SETTINGS, shadow=True))
    step = send(machine, request(SETTINGS.max_body_bytes + 1))
    assert isinstance(step.reply, Route)
    assert step.reply.shadow
