"""In full duplex Envoy keeps no copy of the body, so the router returns every byte."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.deciding import Decider
from extproc.exchange.events import (
    BodyMode,
    Continue,
    Echo,
    Event,
    NotRouted,
    Release,
    RequestBody,
    RequestTrailers,
    ResponseBody,
    Step,
    Withhold,
)
from extproc.exchange.machine import Exchange
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.risk import NoMargin
from extproc.routing.router import Decision, Router

from .messages import (
    CAP,
    CHAT,
    CUTS,
    DUPLEX,
    INJECTING,
    LONG,
    SETTINGS,
    SHORT,
    bodies,
    chat,
    exchange,
    play,
    request,
    response,
    routed,
    send,
    sent_on,
    split,
)


def test_headers_are_withheld_until_the_body_is_here() -> None:
    body = chat(max_tokens=10)
    steps = play(exchange(), request(body, mode=DUPLEX), *bodies(split(body, [10, 20])))

    assert [s.reply for s in steps[:3]] == [Withhold()] * 3
    assert steps[3].reply == Release(routed(steps[3]), body, end_of_stream=True)
    assert routed(steps[3]).pool == SHORT
    assert steps[3].end


def test_a_length_is_not_needed_in_full_duplex() -> None:
    body = chat(max_tokens=10)
    _, step = play(exchange(), request(None, mode=DUPLEX), RequestBody(body, True))

    assert routed(step).pool == SHORT


def test_trailers_release_the_body_and_are_answered() -> None:
    body = chat()
    steps = play(
        exchange(), request(body, mode=DUPLEX), RequestBody(body), RequestTrailers()
    )

    assert steps[1] == Step(Withhold())
    assert steps[2].reply == Release(
        routed(steps[2]), body, end_of_stream=False, trailers=True
    )
    assert steps[2].end


class Broken(Router):
    """A router that fails on every call."""

    def route(self, *args: Any, **how: Any) -> Decision:
        raise ZeroDivisionError

    def fail_open(self, *args: Any) -> Decision:
        raise ZeroDivisionError


def broken() -> Exchange:
    router = Broken(Policy([SHORT, LONG]), Bounded(TextEma(), NoMargin()), TextRatios())
    return Exchange(Decider(router, SETTINGS, lambda decision: True))


@given(
    sizes=st.lists(st.integers(0, 40), max_size=5),
    trailers=st.booleans(),
    both=st.booleans(),
)
def test_a_fault_in_full_duplex_loses_no_byte(
    sizes: list[int], trailers: bool, both: bool
) -> None:
    machine = broken()
    body = chat()
    response_mode = DUPLEX if both else BodyMode.NONE
    parts = split(body, list(itertools.accumulate(sizes)))
    events: list[Event] = [RequestBody(part) for part in parts]
    events.append(RequestTrailers() if trailers else RequestBody(b"", True))
    steps = play(machine, request(None, mode=DUPLEX, response_mode=response_mode))
    steps += play(machine, *events)
    (fault,) = [step.fault for step in steps if step.fault is not None]
    (decided,) = [step.decided for step in steps if step.decided is not None]
    sent = [step.reply.body for step in steps if isinstance(step.reply, Release | Echo)]
    assert b"".join(sent) == body
    assert isinstance(fault, ZeroDivisionError)
    assert decided.decision.reason is Reason.FAULT
    assert decided.decision is machine.decision
    assert not decided.follows_response
    if both:
        assert send(machine, response()).reply == Continue()
        step = send(machine, ResponseBody(b"answer", True))
        assert step.reply == Echo(b"answer", True)


def test_a_fault_elsewhere_ends_the_exchange() -> None:
    machine = broken()
    send(machine, request(chat()))
    with pytest.raises(ZeroDivisionError):
        send(machine, RequestBody(chat(), True))


@pytest.mark.parametrize("response_mode", [BodyMode.NONE, DUPLEX])
@pytest.mark.parametrize("watch", [False, True])
def test_the_stream_ends_only_when_nothing_needs_an_echo(
    response_mode: BodyMode, watch: bool
) -> None:
    body = chat()
    machine = exchange(watch=watch)
    headers = request(body, mode=DUPLEX, response_mode=response_mode)

    steps = play(machine, headers, RequestBody(body, True))

    assert steps[1].end is (not watch and response_mode is BodyMode.NONE)


def test_over_the_cap_the_body_is_released_and_then_echoed() -> None:
    parts = [b"x" * CAP, b"y", b"z" * 10, b"end"]
    steps = play(exchange(), request(None, mode=DUPLEX), *bodies(parts))

    assert steps[1].reply == Withhold()
    assert routed(steps[2]).reason is Reason.TOO_LARGE
    assert steps[2].reply == Release(routed(steps[2]), b"x" * CAP + b"y", False)
    assert not steps[2].end
    assert steps[3] == Step(Echo(b"z" * 10, False))
    assert steps[4] == Step(Echo(b"end", True), end=True)


@settings(max_examples=60)
@given(
    body=st.binary(max_size=300)
    | st.builds(lambda n: b"x" * n, st.integers(0, 3 * CAP)),
    cuts=st.lists(st.integers(0, 3 * CAP), max_size=6),
    path=st.sampled_from([CHAT, "/v1/models"]),
    trailers=st.booleans(),
    watch=st.booleans(),
    both=st.booleans(),
)
def test_what_full_duplex_sends_on_is_what_came(
    body: bytes, cuts: list[int], path: str, trailers: bool, watch: bool, both: bool
) -> None:
    machine = exchange(watch=watch, settings=INJECTING)
    response_mode = DUPLEX if both else BodyMode.NONE
    events: list[Event] = list(bodies(split(body, cuts)))
    if trailers:
        events = [RequestBody(e.body) for e in events if isinstance(e, RequestBody)]
        events.append(RequestTrailers())

    headers = request(None, path=path, mode=DUPLEX, response_mode=response_mode)
    steps = play(machine, headers, *events)

    assert sent_on(steps) == body
    assert not any(step.end for step in steps[:-1])
    ends = [s.reply.end_of_stream for s in steps if isinstance(s.reply, Release | Echo)]
    if trailers:
        assert not any(ends)
    else:
        assert ends[-1]
        assert not any(ends[:-1])


def test_a_path_that_is_not_ours_is_echoed_too() -> None:
    steps = play(
        exchange(),
        request(None, path="/v1/files", mode=DUPLEX),
        RequestBody(b"one"),
        RequestBody(b"two", True),
    )

    assert steps == [
        Step(Continue(), not_routed=NotRouted.UNREAD),
        Step(Echo(b"one", False)),
        Step(Echo(b"two", True), end=True),
    ]


def test_a_response_before_the_body_is_released_is_answered_alone() -> None:
    """After a local reply Envoy no longer waits for the request's headers and body."""
    steps = play(
        exchange(watch=True),
        request(None, mode=DUPLEX, response_mode=DUPLEX),
        RequestBody(b"x" * 100),
        response(413, end=False),
        RequestBody(b"more"),
        RequestTrailers(),
        ResponseBody(b"too large", True),
    )

    assert [s.reply for s in steps] == [
        Withhold(),
        Withhold(),
        Continue(),
        Withhold(),
        Withhold(),
        Echo(b"too large", True),
    ]
    assert not any(s.observation for s in steps)


@settings(max_examples=50)
@given(body=st.binary(max_size=300), cuts=CUTS, ours=st.booleans(), watch=st.booleans())
def test_a_response_in_full_duplex_is_echoed_whatever_it_is(
    body: bytes, cuts: list[int], ours: bool, watch: bool
) -> None:
    sent = chat()
    machine = exchange(watch=watch)
    path = CHAT if ours else "/v1/models"
    play(
        machine,
        request(sent, path=path, mode=DUPLEX, response_mode=DUPLEX),
        RequestBody(sent, True),
        response(kind="text/event-stream"),
    )
    parts = split(body, cuts)
    steps = [
        send(machine, ResponseBody(part, i == len(parts) - 1))
        for i, part in enumerate(parts)
    ]

    assert sent_on(steps) == body
