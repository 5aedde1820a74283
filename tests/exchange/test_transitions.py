import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.events import (
    BodyMode,
    Event,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.transitions import TRANSITIONS, ProtocolError, State

from .messages import (
    ANSWER,
    CHAT,
    DUPLEX,
    INJECTING,
    STREAM,
    chat,
    exchange,
    request,
    response,
    send,
)

EVENTS: dict[type[Event], Callable[[bool], Event]] = {
    RequestHeaders: lambda end: request(b"x", end=end),
    RequestBody: lambda end: RequestBody(b"x", end),
    RequestTrailers: RequestTrailers,
    ResponseHeaders: lambda end: response(end=end),
    ResponseBody: lambda end: ResponseBody(b"x", end),
    ResponseTrailers: ResponseTrailers,
}
MOVES = list(itertools.product(State, EVENTS, [False, True]))
MODES = [BodyMode.NONE, BodyMode.STREAMED, BodyMode.BUFFERED_PARTIAL, DUPLEX]

WAY: list[Callable[[BodyMode], Event]] = [
    lambda mode: request(chat(), mode=mode, response_mode=mode),
    lambda mode: RequestBody(chat(), True),
    lambda mode: response(),
    lambda mode: ResponseBody(ANSWER, True),
]
"""The events of a whole exchange; each event leads to the next state."""


def at(state: State, mode: BodyMode, *, watch: bool) -> Exchange:
    """Return an exchange in the given state."""
    machine = exchange(watch=watch)
    for event, reached in zip(WAY, State, strict=False):
        if reached is state:
            break
        send(machine, event(mode))
    assert machine.state is state
    return machine


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize(
    ("state", "kind", "end"),
    MOVES,
    ids=[f"{s.value}-{k.__name__}-{e}" for s, k, e in MOVES],
)
def test_moves_are_those_of_the_table_and_no_others(
    state: State, kind: type[Event], end: bool, watch: bool
) -> None:
    for mode in MODES:
        machine = at(state, mode, watch=watch)
        event = EVENTS[kind](end)

        if (state, kind, end) in TRANSITIONS:
            step = send(machine, event)
            assert machine.state is TRANSITIONS[state, kind, end]
            assert isinstance(step.reply, Reply)
        else:
            with pytest.raises(ProtocolError, match=f"{kind.__name__}.*{state.value}"):
                send(machine, event)
            assert machine.state is state


def test_every_state_is_reached_and_left() -> None:
    assert {before for before, _, _ in TRANSITIONS} == set(State)
    assert set(TRANSITIONS.values()) == set(State) - {State.REQUEST_HEADERS}


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
def test_one_reply_for_each_message_and_at_most_one_decision_and_observation(
    first: RequestHeaders, events: list[Event], watch: bool
) -> None:
    machine = exchange(watch=watch, settings=INJECTING)
    steps = []
    for event in (first, *events):
        try:
            steps.append(send(machine, event))
        except ProtocolError:
            continue

    assert all(isinstance(step.reply, Reply) for step in steps)
    assert not any(step.fault for step in steps)
    decided = [step.decided for step in steps if step.decided is not None]
    assert [one.decision for one in decided] == [machine.decision] * len(decided)
    assert len(decided) <= 1
    assert sum(step.observation is not None for step in steps) <= 1
    if not any(one.follows_response for one in decided):
        assert not any(step.observation for step in steps)


def test_an_exchange_shows_where_it_stands() -> None:
    machine = exchange(watch=True)
    assert repr(machine) == (
        "<Exchange waits for request_headers, request undecided, response ignored, "
        "decision none>"
    )
    send(machine, request(chat()))
    send(machine, RequestBody(chat(), True))
    assert repr(machine) == (
        "<Exchange BufferedRequest StreamedResponse waits for response_headers, "
        "request settled, response awaited, decision short (within_threshold)>"
    )
