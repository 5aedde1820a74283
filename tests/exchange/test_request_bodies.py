"""The decision about a body, in every mode in which Envoy sends it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.events import (
    AskRequestBody,
    BodyMode,
    Continue,
    Release,
    RequestBody,
    RequestTrailers,
    Route,
    Step,
)
from extproc.exchange.transitions import State
from extproc.routing.policy import PoolLoad, Reason

from .messages import (
    BUFFERING_MODES,
    CAP,
    CUTS,
    DUPLEX,
    ENCODERS,
    LONG,
    SHORT,
    STREAMING_MODES,
    bodies,
    chat,
    exchange,
    play,
    request,
    routed,
    send,
    sent_on,
    split,
)

# Bodies that Envoy buffers.


@pytest.mark.parametrize("mode", BUFFERING_MODES)
def test_a_whole_body_is_routed_and_the_stream_ended(mode: BodyMode | None) -> None:
    body = chat(max_tokens=10)

    ask, route = play(exchange(), request(body, mode=mode), RequestBody(body, True))

    assert ask == Step(AskRequestBody())
    assert route.end
    assert routed(route).pool == SHORT
    assert routed(route).output_tokens == 10
    assert route.reply == Route(routed(route))


def test_a_large_budget_goes_to_the_long_pool() -> None:
    body = chat(max_tokens=3000)

    _, route = play(exchange(), request(body), RequestBody(body, True))

    assert routed(route).pool == LONG
    assert routed(route).reason is Reason.OVER_CAPACITY


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.BUFFERED])
def test_a_buffered_body_before_trailers_is_whole(mode: BodyMode) -> None:
    body = chat()
    machine = exchange(watch=True)

    _, route, trailers = play(
        machine, request(body, mode=mode), RequestBody(body), RequestTrailers()
    )

    assert routed(route).pool == SHORT
    assert trailers.reply == Continue()
    assert machine.state is State.RESPONSE_HEADERS


def test_loads_are_asked_for_at_each_decision() -> None:
    body = chat(max_tokens=10)
    machine = exchange(loads=lambda: {"short": PoolLoad(available=False)})

    _, route = play(machine, request(body), RequestBody(body, True))

    assert (routed(route).pool, routed(route).reason) == (LONG, Reason.SPILLED)


def test_the_hint_header_names_the_category() -> None:
    body = chat()

    _, route = play(
        exchange(), request(body, x_llm_category="code"), RequestBody(body, True)
    )

    assert routed(route).category == "code"


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"\xff\xfe", chat() + b"x"])
@pytest.mark.parametrize("mode", [None, *BodyMode])
def test_a_body_that_is_no_request_goes_to_the_default_pool(
    body: bytes, mode: BodyMode | None
) -> None:
    _, step = play(
        exchange(watch=True), request(body, mode=mode), RequestBody(body, True)
    )

    assert (routed(step).pool, routed(step).reason) == (LONG, Reason.UNPARSABLE)
    assert step.end


def test_a_body_larger_than_it_said_is_not_parsed() -> None:
    body = chat("x" * CAP)

    _, step = play(exchange(), request(10), RequestBody(body, True))

    assert routed(step).reason is Reason.TOO_LARGE
    assert routed(step).body_bytes == len(body)


def test_a_fault_of_ours_goes_to_the_default_pool_and_is_told() -> None:
    def fail() -> None:
        raise ZeroDivisionError("a fault")

    body = chat()
    for mode in BodyMode:
        machine = exchange(watch=True, loads=fail)
        _, step = play(machine, request(body, mode=mode), RequestBody(body, True))

        assert (routed(step).pool, routed(step).reason) == (LONG, Reason.FAULT)
        assert step.end
        assert isinstance(step.fault, ZeroDivisionError)


# Bodies that Envoy streams, because it is configured to or because it allows no
# override.


@pytest.mark.parametrize("mode", STREAMING_MODES)
def test_chunks_pass_and_the_last_is_routed(mode: BodyMode | None) -> None:
    body = chat()
    steps = play(
        exchange(),
        request(body, mode=mode),
        *bodies(split(body, [5, 9])),
    )

    assert steps[1:3] == [Step(Continue()), Step(Continue())]
    assert routed(steps[3]).pool == SHORT


def test_an_empty_last_message_decides() -> None:
    body = chat()
    steps = play(
        exchange(),
        request(body, mode=BodyMode.STREAMED),
        RequestBody(body),
        RequestBody(b"", True),
    )

    assert steps[1] == Step(Continue())
    assert routed(steps[2]).pool == SHORT


def test_a_repeated_end_of_the_body_is_answered_and_decides_nothing_anew() -> None:
    body = chat()
    machine = exchange(watch=True)
    play(machine, request(body, mode=BodyMode.STREAMED), RequestBody(body, True))
    decision = machine.decision

    assert send(machine, RequestBody(b"", True)) == Step(Continue())
    assert send(machine, RequestBody(b"")) == Step(Continue())
    assert send(machine, RequestTrailers()) == Step(Continue())
    assert machine.decision is decision


def test_a_stream_is_given_up_as_soon_as_it_is_over_the_cap() -> None:
    steps = play(
        exchange(watch=True),
        request(10, mode=BodyMode.STREAMED),
        RequestBody(b"x" * CAP),
        RequestBody(b"x"),
    )

    assert steps[1] == Step(Continue())
    assert routed(steps[2]).reason is Reason.TOO_LARGE
    assert steps[2].end


@pytest.mark.parametrize("watch", [False, True])
def test_a_streamed_body_that_ends_in_trailers_is_decided_upon(watch: bool) -> None:
    """Envoy has already sent the headers on, so the decision is reported without
    effect.
    """
    machine = exchange(watch=watch)
    steps = play(
        machine,
        request(10, mode=BodyMode.STREAMED),
        RequestBody(chat()[:9]),
        RequestBody(chat()[9:]),
        RequestTrailers(),
    )

    whole = play(exchange(), request(chat()), RequestBody(chat(), True))[-1]
    assert isinstance(steps[3].reply, Route)
    assert (steps[3].reply.shadow, steps[3].end) == (True, not watch)
    assert routed(steps[3]) is machine.decision
    assert routed(steps[3]).prompt_tokens == routed(whole).prompt_tokens


def test_a_partial_body_is_routed_only_when_it_is_whole() -> None:
    body = chat()
    for end, reason in ((True, Reason.WITHIN_THRESHOLD), (False, Reason.TOO_LARGE)):
        machine = exchange()
        headers = request(body, mode=BodyMode.BUFFERED_PARTIAL)
        _, step = play(machine, headers, RequestBody(body, end))

        assert routed(step).reason is reason
        assert step.end


TEXTS = st.text(st.sampled_from('ab é漢{}"\\\n5'), max_size=150)


@settings(max_examples=60)
@given(text=TEXTS, cuts=CUTS, limit=st.integers(1, 1200))
def test_any_split_of_any_body_gives_the_same_decision(
    text: str, cuts: list[int], limit: int
) -> None:
    body = chat(text, max_tokens=limit)
    decisions = []
    for mode in (None, BodyMode.NONE, BodyMode.BUFFERED):
        machine = exchange()
        play(machine, request(body, mode=mode), RequestBody(body, True))
        decisions.append(machine.decision)
    for mode in (None, BodyMode.STREAMED, DUPLEX):
        machine = exchange()
        play(machine, request(body, mode=mode), *bodies(split(body, cuts)))
        decisions.append(machine.decision)

    numbers = {
        (d.pool.name, d.reason, d.category, d.bound_tokens, d.output_tokens)
        for d in decisions
        if d is not None
    }
    assert None not in decisions
    assert len(numbers) == 1


# Content-encodings of the request.


@pytest.mark.parametrize("mode", [BodyMode.NONE, DUPLEX])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_an_encoded_body_is_decided_upon_and_passes_as_it_is(
    encoding: str, mode: BodyMode
) -> None:
    plain = chat("some text " * 50, max_tokens=10)
    body = ENCODERS[encoding](plain)

    _, step = play(
        exchange(),
        request(body, mode=mode, content_encoding=encoding),
        RequestBody(body, True),
    )

    assert routed(step).pool == SHORT
    assert routed(step).body_bytes == len(plain)
    assert isinstance(step.reply, Release) or step.reply == Route(routed(step))
    if mode is DUPLEX:
        assert sent_on([step]) == body


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-3],
        lambda body: b"no such thing" + body,
        lambda body: b"",
    ],
    ids=["truncated", "corrupt", "empty"],
)
def test_an_encoded_body_that_is_none_goes_to_the_default_pool(
    encoding: str, spoil: Callable[[bytes], bytes]
) -> None:
    body = spoil(ENCODERS[encoding](chat()))

    _, step = play(
        exchange(watch=True),
        request(body, content_encoding=encoding),
        RequestBody(body, True),
    )

    assert (routed(step).pool, routed(step).reason) == (LONG, Reason.UNDECODABLE)
    assert step.end


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_bomb_goes_to_the_default_pool(encoding: str) -> None:
    bomb = ENCODERS[encoding](chat("x" * 50 * CAP))
    assert len(bomb) < CAP

    _, step = play(
        exchange(), request(bomb, content_encoding=encoding), RequestBody(bomb, True)
    )

    assert routed(step).reason is Reason.UNDECODABLE


def test_an_unknown_encoding_goes_to_the_default_pool() -> None:
    body = chat()
    headers = request(body, content_encoding="aws-chunked")

    _, step = play(exchange(), headers, RequestBody(body, True))

    assert routed(step).reason is Reason.UNDECODABLE
