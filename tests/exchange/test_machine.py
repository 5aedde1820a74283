import dataclasses
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.exchange.events import (
    AskRequestBody,
    AskResponseBody,
    BodyMode,
    Continue,
    Echo,
    Event,
    Observation,
    Release,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Rewrite,
    Route,
    Step,
    Withhold,
)
from extproc.exchange.machine import (
    HEADERS_READ,
    MAX_ENCODED_RESPONSE_BYTES,
    TRANSITIONS,
    Exchange,
    ExchangeSettings,
    ProtocolError,
    State,
)
from extproc.exchange.receipt import read_receipt
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.router import Decision, Outcome, Router

CHAT = "/v1/chat/completions"
CAP = 4096
SHORT, LONG = Pool("short", 1000, 1000), Pool("long", 8000, 8000)
SETTINGS = ExchangeSettings(max_body_bytes=CAP)
INJECTING = ExchangeSettings(max_body_bytes=CAP, inject_usage=True)

BUFFERING_MODES = [None, BodyMode.NONE, BodyMode.BUFFERED]
STREAMING_MODES = [None, BodyMode.STREAMED]
DUPLEX = BodyMode.FULL_DUPLEX_STREAMED


def exchange(
    *,
    watch: bool = False,
    settings: ExchangeSettings = SETTINGS,
    loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
) -> Exchange:
    router = Router(Policy([SHORT, LONG]), TextEma(), TextRatios())
    return Exchange(router, settings, lambda decision: watch, loads)


def chat(text: str = "Hello", **more: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def request(
    body: bytes | int | None = b"",
    *,
    path: str = CHAT,
    method: str = "POST",
    mode: BodyMode | None = BodyMode.NONE,
    response_mode: BodyMode | None = BodyMode.NONE,
    end: bool = False,
    **headers: str,
) -> RequestHeaders:
    """Headers of a request; its length is the body's, a number, or not said."""
    all_headers = {":path": path, ":method": method}
    if body is not None:
        length = body if isinstance(body, int) else len(body)
        all_headers["content-length"] = str(length)
    all_headers |= {key.replace("_", "-"): value for key, value in headers.items()}
    return RequestHeaders(all_headers, end, mode, response_mode)


def response(
    status: int = 200,
    kind: str = "application/json",
    *,
    end: bool = False,
    **headers: str,
) -> ResponseHeaders:
    all_headers = {":status": str(status), "content-type": kind}
    all_headers |= {key.replace("_", "-"): value for key, value in headers.items()}
    return ResponseHeaders(all_headers, end)


def play(machine: Exchange, *events: Event) -> list[Step]:
    return [machine.receive(event) for event in events]


def split(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted({c for c in cuts if 0 < c < len(body)}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(places)]


def bodies(parts: Sequence[bytes]) -> list[RequestBody]:
    return [RequestBody(p, i == len(parts) - 1) for i, p in enumerate(parts)]


def routed(step: Step) -> Decision:
    assert isinstance(step.reply, Route | Release)
    assert step.reply.decision is not None
    return step.reply.decision


# Moves.

EVENTS: dict[type[Event], Callable[[bool], Event]] = {
    RequestHeaders: lambda end: request(b"x", end=end),
    RequestBody: lambda end: RequestBody(b"x", end),
    RequestTrailers: RequestTrailers,
    ResponseHeaders: lambda end: response(end=end),
    ResponseBody: lambda end: ResponseBody(b"x", end),
    ResponseTrailers: ResponseTrailers,
}
MOVES = list(itertools.product(State, EVENTS, [False, True]))


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize(
    ("state", "kind", "end"),
    MOVES,
    ids=[f"{s.value}-{k.__name__}-{e}" for s, k, e in MOVES],
)
def test_moves_are_those_of_the_table_and_no_others(
    state: State, kind: type[Event], end: bool, watch: bool
) -> None:
    machine = exchange(watch=watch)
    machine.state = state
    event = EVENTS[kind](end)

    if (state, kind, end) in TRANSITIONS:
        step = machine.receive(event)
        assert machine.state is TRANSITIONS[state, kind, end]
        assert isinstance(step.reply, Reply)
    else:
        with pytest.raises(ProtocolError, match=f"{kind.__name__}.*{state.value}"):
            machine.receive(event)
        assert machine.state is state


def test_every_state_is_reached_and_left() -> None:
    assert {before for before, _, _ in TRANSITIONS} == set(State)
    assert set(TRANSITIONS.values()) == set(State) - {State.REQUEST_HEADERS}


# Request headers.


@pytest.mark.parametrize("path", ["/v1/models", "/health", "", "/v1/chat/completions/"])
def test_a_path_that_is_not_ours_goes_on_without_us(path: str) -> None:
    assert exchange().receive(request(path=path)) == Step(Continue(), end=True)


def test_a_method_other_than_post_goes_on_without_us() -> None:
    assert exchange().receive(request(method="GET")) == Step(Continue(), end=True)


@pytest.mark.parametrize("mode", [None, *BodyMode])
def test_a_request_without_a_body_goes_on_without_us(mode: BodyMode | None) -> None:
    machine = exchange(watch=True)

    assert machine.receive(request(end=True, mode=mode)) == Step(Continue(), end=True)
    assert machine.decision is None


@pytest.mark.parametrize("length", [0, 1, CAP])
def test_a_body_within_the_cap_is_asked_for(length: int) -> None:
    assert exchange().receive(request(length)) == Step(AskRequestBody())


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (str(CAP + 1), Reason.TOO_LARGE),
        ("9" * 400, Reason.TOO_LARGE),
        ("9" * 5000, Reason.TOO_LARGE),
        ("0" * 40 + str(CAP + 1), Reason.TOO_LARGE),
        ("", Reason.LENGTH_UNKNOWN),
        ("-1", Reason.LENGTH_UNKNOWN),
        ("1e3", Reason.LENGTH_UNKNOWN),
        ("٣", Reason.LENGTH_UNKNOWN),
        ("5, 5", Reason.LENGTH_UNKNOWN),
    ],
)
def test_a_body_that_cannot_be_asked_for_goes_to_the_default_pool_at_once(
    length: str, reason: Reason
) -> None:
    step = exchange(watch=True).receive(request(None, content_length=length))

    assert step.end
    assert (routed(step).pool, routed(step).reason) == (LONG, reason)
    assert routed(step).features is None


def test_leading_zeros_do_not_make_a_length_large() -> None:
    step = exchange().receive(request(None, content_length="0" * 40 + "7"))

    assert step.reply == AskRequestBody()


def test_a_request_that_does_not_say_its_length_is_not_read() -> None:
    step = exchange().receive(request(None))

    assert routed(step).reason is Reason.LENGTH_UNKNOWN


# Buffered bodies.


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
        assert isinstance(machine.fault, ZeroDivisionError)


# Streamed bodies, as configured by the operator or where the override is not allowed.


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

    assert machine.receive(RequestBody(b"", True)) == Step(Continue())
    assert machine.receive(RequestBody(b"")) == Step(Continue())
    assert machine.receive(RequestTrailers()) == Step(Continue())
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
    """Its headers have gone: it is not moved, but said, and learned from."""
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


CUTS = st.lists(st.integers(0, 400), max_size=8)
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


# Full duplex: the body is echoed, byte for byte.


def sent_on(steps: Iterable[Step]) -> bytes:
    """The request body that Envoy sends upstream, from the replies."""
    body = b""
    for step in steps:
        if isinstance(step.reply, Release | Echo):
            body += step.reply.body
    return body


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
    """Fails whatever it is asked."""

    def route(self, *args: Any) -> Decision:
        raise ZeroDivisionError

    def fail_open(self, *args: Any) -> Decision:
        raise ZeroDivisionError


def broken() -> Exchange:
    router = Broken(Policy([SHORT, LONG]), TextEma(), TextRatios())
    return Exchange(router, SETTINGS, lambda decision: True)


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
    sent = [step.reply.body for step in steps if isinstance(step.reply, Release | Echo)]
    assert b"".join(sent) == body
    assert isinstance(machine.fault, ZeroDivisionError)
    assert machine.decision is not None
    assert machine.decision.reason is Reason.FAULT
    assert not machine.follows_response
    if both:
        assert machine.receive(response()).reply == Continue()
        step = machine.receive(ResponseBody(b"answer", True))
        assert step.reply == Echo(b"answer", True)


def test_a_fault_elsewhere_ends_the_exchange() -> None:
    machine = broken()
    machine.receive(request(chat()))
    with pytest.raises(ZeroDivisionError):
        machine.receive(RequestBody(chat(), True))


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
        Step(Continue()),
        Step(Echo(b"one", False)),
        Step(Echo(b"two", True), end=True),
    ]


def test_a_response_before_the_body_is_released_is_answered_alone() -> None:
    """A local reply: nobody waits for the request's headers and body any more."""
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
        machine.receive(ResponseBody(part, i == len(parts) - 1))
        for i, part in enumerate(parts)
    ]

    assert sent_on(steps) == body


# Content-encodings of the request.

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


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


# The response.

USAGE = {"prompt_tokens": 12, "completion_tokens": 34}
ANSWER = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": USAGE}).encode()
USAGE_EVENT = b'data: {"choices": [], "usage": %s}\n\n' % json.dumps(USAGE).encode()
STREAM = b'data: {"choices": [{"delta": {}}]}\n\n' + USAGE_EVENT + b"data: [DONE]\n\n"


def watched(settings: ExchangeSettings = SETTINGS, **more: Any) -> Exchange:
    """An exchange that waits for its response's headers."""
    body = chat(**more)
    machine = exchange(watch=True, settings=settings)
    play(machine, request(body), RequestBody(body, True))
    return machine


def outcome(step: Step) -> Outcome:
    assert step.observation is not None
    return step.observation.outcome


def test_the_usage_of_a_json_answer_is_observed() -> None:
    machine = watched()

    headers, body = play(machine, response(), ResponseBody(ANSWER, True))

    assert headers == Step(AskResponseBody())
    assert body.reply == Continue()
    assert body.end
    assert body.observation == Observation(
        machine.decision, Outcome(200, prompt_tokens=12, completion_tokens=34)
    )


def test_the_usage_of_a_stream_is_observed_at_its_own_last_event() -> None:
    machine = watched()
    play(machine, response(kind="text/event-stream"))

    first = machine.receive(ResponseBody(STREAM[:50]))
    last = machine.receive(ResponseBody(STREAM[50:]))

    assert first == Step(Continue())
    assert outcome(last) == Outcome(200, 12, 34)
    assert last.end


def test_a_stream_cut_off_before_its_end_is_observed_if_it_ended_for_envoy() -> None:
    machine = watched()
    play(machine, response(kind="text/event-stream"))

    step = machine.receive(ResponseBody(b'data: {"choices": []}\n\n', True))

    assert outcome(step) == Outcome(200, None, None)


def test_a_client_that_goes_away_leaves_no_observation() -> None:
    machine = watched()
    steps = play(machine, response(kind="text/event-stream"), ResponseBody(STREAM[:90]))

    assert not any(step.observation for step in steps)


@settings(max_examples=50)
@given(cuts=CUTS, kind=st.sampled_from(["application/json", "text/event-stream"]))
def test_any_split_of_a_response_is_observed_once(cuts: list[int], kind: str) -> None:
    machine = watched()
    machine.receive(response(kind=kind))
    parts = split(ANSWER if kind == "application/json" else STREAM, cuts)
    steps = [
        machine.receive(ResponseBody(part, i == len(parts) - 1))
        for i, part in enumerate(parts)
    ]

    observations = [step.observation for step in steps if step.observation]
    assert [o.outcome for o in observations] == [Outcome(200, 12, 34)]
    assert {type(step.reply) for step in steps} == {Continue}


def test_trailers_end_a_response() -> None:
    machine = watched()
    steps = play(machine, response(), ResponseBody(ANSWER), ResponseTrailers())

    assert steps[1] == Step(Continue())
    assert outcome(steps[2]) == Outcome(200, 12, 34)
    assert steps[2].end


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (response(400), 400),
        (response(503, end=True), 503),
        (response(200, end=True), 200),
        (response(200, "text/html"), 200),
        (response(200, ""), 200),
        (ResponseHeaders({}), 0),
        (ResponseHeaders({":status": "2x0"}), 0),
    ],
)
def test_a_response_without_usage_is_observed_by_its_status(
    headers: ResponseHeaders, status: int
) -> None:
    step = watched().receive(headers)

    assert step.reply == Continue()
    assert step.end
    assert outcome(step) == Outcome(status)


def test_upstream_attempts_are_observed() -> None:
    machine = watched()
    steps = play(
        machine, response(x_envoy_attempt_count="2"), ResponseBody(ANSWER, True)
    )

    assert outcome(steps[1]).attempts == 2


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "9" * 50])
def test_an_odd_attempt_count_does_no_harm(count: str) -> None:
    machine = watched()
    machine.receive(response(x_envoy_attempt_count=count))

    step = machine.receive(ResponseBody(ANSWER, True))

    assert outcome(step).attempts >= 1


def test_what_is_not_watched_ends_before_the_response() -> None:
    body = chat()
    machine = exchange()
    _, route = play(machine, request(body), RequestBody(body, True))
    assert route.end

    # Were Envoy to send it all the same:
    assert machine.receive(response()) == Step(Continue(), end=True)
    assert machine.receive(ResponseBody(ANSWER, True)) == Step(Continue(), end=True)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("status", [200, 413])
def test_a_local_reply_before_the_request_body_ends(status: int, end: bool) -> None:
    machine = exchange(watch=True)
    _, step = play(machine, request(100), response(status, end=end))

    assert step == Step(Continue(), end=True)
    assert machine.decision is None
    if not end:
        assert machine.receive(RequestBody(b"rest", True)) == Step(Continue())


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_usage_is_read_from_an_encoded_response(encoding: str, kind: str) -> None:
    machine = watched()
    body = ENCODERS[encoding](ANSWER if kind == "application/json" else STREAM)
    steps = play(
        machine,
        response(kind=kind, content_encoding=encoding),
        ResponseBody(body[:20]),
        ResponseBody(body[20:], True),
    )

    assert outcome(steps[2]) == Outcome(200, 12, 34)
    assert {type(step.reply) for step in steps[1:]} == {Continue}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not gzip",
        gzip.compress(ANSWER)[:-4],
        bytes(MAX_ENCODED_RESPONSE_BYTES * 2),
    ],
    ids=["empty", "corrupt", "truncated", "large"],
)
def test_an_encoded_response_that_cannot_be_read_teaches_nothing(body: bytes) -> None:
    machine = watched()
    machine.receive(response(content_encoding="gzip"))
    machine.receive(ResponseBody(body))

    step = machine.receive(ResponseBody(b"", True))

    assert outcome(step) == Outcome(200)
    assert step.reply == Continue()


# Injection.


def inject(**more: Any) -> tuple[Exchange, Step]:
    body = chat(stream=True, **more)
    machine = exchange(watch=True, settings=INJECTING)
    _, step = play(machine, request(body), RequestBody(body, True))
    return machine, step


def test_usage_is_asked_for_and_its_chunk_taken_out() -> None:
    machine, route = inject()
    assert isinstance(route.reply, Route)
    assert route.reply.body is not None
    assert json.loads(route.reply.body)["stream_options"] == {"include_usage": True}

    machine.receive(response(kind="text/event-stream"))
    step = machine.receive(ResponseBody(STREAM))

    assert step.reply == Rewrite(STREAM.replace(USAGE_EVENT, b""))
    assert outcome(step) == Outcome(200, 12, 34)


@settings(max_examples=50)
@given(cuts=CUTS)
def test_what_the_client_gets_after_an_injection_is_the_rest(cuts: list[int]) -> None:
    machine, _ = inject()
    machine.receive(response(kind="text/event-stream"))
    parts = split(STREAM, cuts)
    got = b""
    for i, part in enumerate(parts):
        step = machine.receive(ResponseBody(part, i == len(parts) - 1))
        got += step.reply.body if isinstance(step.reply, Rewrite) else part

    assert got == STREAM.replace(USAGE_EVENT, b"")


def test_a_client_that_asked_keeps_its_usage_chunk() -> None:
    machine, route = inject(stream_options={"include_usage": True})
    assert route.reply == Route(routed(route))

    machine.receive(response(kind="text/event-stream"))
    step = machine.receive(ResponseBody(STREAM))

    assert step.reply == Continue()


def test_nothing_is_injected_where_it_was_not_asked_for() -> None:
    for body in (chat(), chat(stream=False), chat(stream=True, stream_options=None)):
        machine = exchange(watch=True, settings=INJECTING)
        _, step = play(machine, request(body), RequestBody(body, True))
        assert step.reply == Route(routed(step))
    body = chat(stream=True)
    for settings_, watch in ((SETTINGS, True), (INJECTING, False)):
        machine = exchange(watch=watch, settings=settings_)
        _, step = play(machine, request(body), RequestBody(body, True))
        assert step.reply == Route(routed(step))


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, None, DUPLEX])
def test_nothing_is_injected_into_a_body_whose_start_has_passed(
    mode: BodyMode | None,
) -> None:
    body = chat(stream=True)
    machine = exchange(watch=True, settings=INJECTING)

    _, step = play(machine, request(body, mode=mode), RequestBody(body, True))

    assert isinstance(step.reply, Release) or step.reply == Route(routed(step))


def test_nothing_is_injected_into_an_encoded_body() -> None:
    body = gzip.compress(chat(stream=True))
    machine = exchange(watch=True, settings=INJECTING)

    _, step = play(
        machine, request(body, content_encoding="gzip"), RequestBody(body, True)
    )

    assert step.reply == Route(routed(step))


# Whatever comes.

ANY_EVENT = st.one_of(
    st.builds(
        RequestHeaders,
        st.dictionaries(
            st.sampled_from(
                [
                    ":path",
                    ":method",
                    "content-length",
                    "content-encoding",
                    "x-llm-category",
                ]
            ),
            st.sampled_from(
                [CHAT, "POST", "9", "99999", "gzip", "br, gzip", "", "\xff"]
            ),
        ),
        st.booleans(),
        st.none() | st.sampled_from(BodyMode),
        st.none() | st.sampled_from(BodyMode),
    ),
    st.builds(RequestBody, st.binary(max_size=20) | st.just(chat()), st.booleans()),
    st.builds(RequestTrailers, st.just(True)),
    st.builds(
        ResponseHeaders,
        st.dictionaries(
            st.sampled_from([":status", "content-type", "content-encoding"]),
            st.sampled_from(
                ["200", "400", "text/event-stream", "application/json", "gzip"]
            ),
        ),
        st.booleans(),
    ),
    st.builds(
        ResponseBody, st.sampled_from([b"", b"\xff", ANSWER, STREAM]), st.booleans()
    ),
    st.builds(ResponseTrailers, st.just(True)),
)
FIRST = st.builds(
    lambda mode, both, path, encoding: request(
        None if mode is DUPLEX else 9,
        path=path,
        mode=mode,
        response_mode=DUPLEX if both else None,
        content_encoding=encoding,
    ),
    st.none() | st.sampled_from(BodyMode),
    st.booleans(),
    st.sampled_from([CHAT, "/v1/completions", "/v1/models"]),
    st.sampled_from(["", "gzip"]),
)


@settings(max_examples=200)
@given(first=FIRST, events=st.lists(ANY_EVENT, max_size=8), watch=st.booleans())
def test_one_reply_for_each_message_and_at_most_one_observation(
    first: RequestHeaders, events: list[Event], watch: bool
) -> None:
    machine = exchange(watch=watch, settings=INJECTING)
    observations = 0
    for event in (first, *events):
        try:
            step = machine.receive(event)
        except ProtocolError:
            continue
        assert isinstance(step.reply, Reply)
        observations += step.observation is not None

    assert observations <= 1
    assert machine.fault is None


# Shadow mode.


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
    step = machine.receive(request(SETTINGS.max_body_bytes + 1))
    assert isinstance(step.reply, Route)
    assert step.reply.shadow


GIVING = dataclasses.replace(SETTINGS, receipts=True)


@pytest.mark.parametrize("shadow", [False, True])
def test_a_decision_is_handed_out_with_its_route(shadow: bool) -> None:
    machine = exchange(settings=dataclasses.replace(GIVING, shadow=shadow))
    body = chat()
    step = play(machine, request(body), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Route)
    router = Router(Policy([SHORT, LONG]), TextEma(), TextRatios())
    again = read_receipt(step.reply.receipt, router.policy, router.categories)
    assert again is not None
    assert again.prompt_tokens == routed(step).prompt_tokens
    assert step.end


def test_a_decision_without_the_body_is_handed_out_too() -> None:
    (step,) = play(exchange(settings=GIVING), request(CAP + 1))
    assert isinstance(step.reply, Route)
    assert step.reply.receipt


def test_a_released_decision_is_handed_out_too() -> None:
    body = chat()
    machine = exchange(settings=GIVING)
    step = play(machine, request(body, mode=DUPLEX), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Release)
    assert step.reply.receipt


def test_a_response_that_is_looked_at_is_not_learned_from_twice() -> None:
    body = chat()
    machine = exchange(watch=True, settings=GIVING)
    step = play(machine, request(body), RequestBody(body, True))[-1]
    assert isinstance(step.reply, Route)
    assert step.reply.receipt == b""
    assert not step.end


class Noted(dict[str, str]):
    """Headers that remember which of them were asked for."""

    def __init__(self, headers: Mapping[str, str], asked: set[str]) -> None:
        super().__init__(headers)
        self.asked = asked

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_no_other_headers_are_looked_at_than_those_said() -> None:
    asked: set[str] = set()
    body = chat()
    sent = request(body, content_encoding="identity")
    machine = exchange(watch=True)
    play(
        machine,
        replace(sent, headers=Noted(sent.headers, asked)),
        RequestBody(body, True),
        replace(response(), headers=Noted(response().headers, asked)),
    )
    assert asked == {*HEADERS_READ, SETTINGS.category_header}
