import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.events import (
    AskResponseBody,
    BodyMode,
    Continue,
    Observation,
    Release,
    RequestBody,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Rewrite,
    Route,
    Step,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.exchange.usage_tap import MAX_ENCODED_RESPONSE_BYTES
from extproc.routing.router import Outcome

from .messages import (
    ANSWER,
    CUTS,
    DUPLEX,
    ENCODERS,
    INJECTING,
    SETTINGS,
    STREAM,
    USAGE_EVENT,
    chat,
    exchange,
    play,
    request,
    response,
    routed,
    send,
    split,
)


def watched(settings: ExchangeSettings = SETTINGS, **more: Any) -> Exchange:
    """Return an exchange that waits for the headers of the response."""
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

    assert machine.decision is not None
    assert headers == Step(AskResponseBody())
    assert body.reply == Continue()
    assert body.end
    assert body.observation == Observation(
        machine.decision, Outcome(200, prompt_tokens=12, completion_tokens=34)
    )


def test_the_usage_of_a_stream_is_observed_at_its_own_last_event() -> None:
    machine = watched()
    play(machine, response(kind="text/event-stream"))

    first = send(machine, ResponseBody(STREAM[:50]))
    last = send(machine, ResponseBody(STREAM[50:]))

    assert first == Step(Continue())
    assert outcome(last) == Outcome(200, 12, 34)
    assert last.end


def test_a_stream_cut_off_before_its_end_is_observed_if_it_ended_for_envoy() -> None:
    machine = watched()
    play(machine, response(kind="text/event-stream"))

    step = send(machine, ResponseBody(b'data: {"choices": []}\n\n', True))

    assert outcome(step) == Outcome(200, None, None)


def test_a_client_that_goes_away_leaves_no_observation() -> None:
    machine = watched()
    steps = play(machine, response(kind="text/event-stream"), ResponseBody(STREAM[:90]))

    assert not any(step.observation for step in steps)


@settings(max_examples=50)
@given(cuts=CUTS, kind=st.sampled_from(["application/json", "text/event-stream"]))
def test_any_split_of_a_response_is_observed_once(cuts: list[int], kind: str) -> None:
    machine = watched()
    send(machine, response(kind=kind))
    parts = split(ANSWER if kind == "application/json" else STREAM, cuts)
    steps = [
        send(machine, ResponseBody(part, i == len(parts) - 1))
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
    step = send(watched(), headers)

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
    send(machine, response(x_envoy_attempt_count=count))

    step = send(machine, ResponseBody(ANSWER, True))

    assert outcome(step).attempts >= 1


def test_what_is_not_watched_ends_before_the_response() -> None:
    body = chat()
    machine = exchange()
    _, route = play(machine, request(body), RequestBody(body, True))
    assert route.end

    # After this end, Envoy does not send the response. If Envoy sent it, the machine
    # would reply as follows.
    assert send(machine, response()) == Step(Continue(), end=True)
    assert send(machine, ResponseBody(ANSWER, True)) == Step(Continue(), end=True)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("status", [200, 413])
def test_a_local_reply_before_the_request_body_ends(status: int, end: bool) -> None:
    machine = exchange(watch=True)
    _, step = play(machine, request(100), response(status, end=end))

    assert step == Step(Continue(), end=True, refused=status == 413)
    assert machine.decision is None
    if not end:
        assert send(machine, RequestBody(b"rest", True)) == Step(Continue())


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
    send(machine, response(content_encoding="gzip"))
    send(machine, ResponseBody(body))

    step = send(machine, ResponseBody(b"", True))

    assert outcome(step) == Outcome(200)
    assert step.reply == Continue()


# Injection of usage into requests and responses.


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

    send(machine, response(kind="text/event-stream"))
    step = send(machine, ResponseBody(STREAM))

    assert step.reply == Rewrite(STREAM.replace(USAGE_EVENT, b""))
    assert outcome(step) == Outcome(200, 12, 34)


@settings(max_examples=50)
@given(cuts=CUTS)
def test_what_the_client_gets_after_an_injection_is_the_rest(cuts: list[int]) -> None:
    machine, _ = inject()
    send(machine, response(kind="text/event-stream"))
    parts = split(STREAM, cuts)
    got = b""
    for i, part in enumerate(parts):
        step = send(machine, ResponseBody(part, i == len(parts) - 1))
        got += step.reply.body if isinstance(step.reply, Rewrite) else part

    assert got == STREAM.replace(USAGE_EVENT, b"")


def test_a_client_that_asked_keeps_its_usage_chunk() -> None:
    machine, route = inject(stream_options={"include_usage": True})
    assert route.reply == Route(routed(route))

    send(machine, response(kind="text/event-stream"))
    step = send(machine, ResponseBody(STREAM))

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
