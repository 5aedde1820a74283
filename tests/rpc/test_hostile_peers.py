"""Peers that violate the protocol or flood the machine, tested by bytes in and out."""

import struct
from unittest import mock

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder

from extproc.rpc.limits import MIN_WORK_BYTES, Budget, Limits

from .frame_bytes import (
    ACK,
    BLOCK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    MORE,
    OPEN,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    START,
    UPDATE,
    frame,
    frames_in,
    request_block,
    setting,
)
from .peers import Machine, framed


def verdict(data: bytes, limits: Limits | None = None) -> tuple[str, int | None] | None:
    """Feed data to a new machine, and return the last error that the machine sent."""
    machine = Machine(limits)
    machine.connection.take()
    sent = frames_in(machine.feed(data))
    errors = [each for each in sent if each.kind in (RST, GOAWAY)]
    machine.connection.lost()
    assert all(len(call.closed_with) == 1 for call in machine.calls)
    if not errors:
        return None
    last = errors[-1]
    assert (last.kind == GOAWAY) == machine.connection.finished or last.kind == RST
    return ("connection" if last.kind == GOAWAY else "stream"), last.code


E = ErrorCodes
LARGE_FIELD = Encoder().encode([("x-large", "\0" * 2**14)], huffman=False)
WAITS = frame(HEADER, END_HEADERS, 1, request_block(**{":path": "/test.Test/Wait"}))


@pytest.mark.parametrize(
    ("data", "scope", "code"),
    [
        # RFC 9113, 3.4: the preface comes first, then SETTINGS.
        (b"GET / HTTP/1.1\r\n\r\n", "connection", E.PROTOCOL_ERROR),
        (PREFACE[:-1] + b"x", "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(PING, 0, 0, bytes(8)), "connection", E.PROTOCOL_ERROR),
        (PREFACE + OPEN, "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, ACK, 0), "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(99, 0, 0), "connection", E.PROTOCOL_ERROR),
        # 4.2: frame sizes.
        (START + frame(DATA, 0, 1, bytes(2**14 + 1)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(99, 0, 0, bytes(2**14 + 1)), "connection", E.FRAME_SIZE_ERROR),
        (
            START + OPEN + frame(DATA, 0, 1, framed(bytes(2**14))),
            "connection",
            E.FRAME_SIZE_ERROR,
        ),
        (
            START + frame(HEADER, END_HEADERS, 1, BLOCK + LARGE_FIELD),
            "connection",
            E.FRAME_SIZE_ERROR,
        ),
        # 4.3, 6.10: header blocks are contiguous.
        (
            START + frame(HEADER, 0, 1, BLOCK[:5]) + frame(PING, 0, 0, bytes(8)),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + frame(HEADER, 0, 1, BLOCK[:5]) + frame(MORE, 4, 3, BLOCK[5:]),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + OPEN + frame(HEADER, 0, 3, BLOCK) + frame(DATA, 0, 1, framed(b"x")),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + frame(HEADER, 0, 1, BLOCK) + frame(HEADER, 4, 3, BLOCK),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + frame(HEADER, 0, 1, BLOCK) + frame(99, 0, 1),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (START + frame(MORE, 4, 1, BLOCK), "connection", E.PROTOCOL_ERROR),
        (START + OPEN + frame(MORE, 4, 1, BLOCK), "connection", E.PROTOCOL_ERROR),
        (START + frame(HEADER, 0, 0, BLOCK), "connection", E.PROTOCOL_ERROR),
        (
            START + frame(HEADER, END_HEADERS, 1, b"\xff\xff\xff"),
            "connection",
            E.COMPRESSION_ERROR,
        ),
        # 5.1, 5.1.1: stream states and identifiers.
        (
            START
            + WAITS
            + frame(DATA, END_STREAM, 1, framed(b"x"))
            + frame(DATA, 0, 1, framed(b"x")),
            "stream",
            E.STREAM_CLOSED,
        ),
        (START + frame(DATA, 0, 1, b""), "connection", E.PROTOCOL_ERROR),
        (START + frame(RST, 0, 1, bytes(4)), "connection", E.PROTOCOL_ERROR),
        (START + frame(UPDATE, 0, 1, bytes(3) + b"\1"), "connection", E.PROTOCOL_ERROR),
        (START + frame(HEADER, 4, 2, BLOCK), "connection", E.PROTOCOL_ERROR),
        (
            START + frame(HEADER, 4, 5, BLOCK) + frame(HEADER, 4, 2, BLOCK),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + frame(HEADER, 4, 5, BLOCK) + frame(HEADER, 4, 3, BLOCK),
            "connection",
            E.STREAM_CLOSED,
        ),
        (
            START + frame(HEADER, 5, 1, BLOCK) + frame(DATA, 0, 1, b"x"),
            "stream",
            E.STREAM_CLOSED,
        ),
        (
            START + frame(HEADER, 5, 1, BLOCK) + frame(HEADER, 5, 1, BLOCK),
            "connection",
            E.STREAM_CLOSED,
        ),
        (
            START
            + frame(HEADER, 5, 1, request_block(**{":path": "/test.Test/Wait"}))
            + frame(DATA, 0, 1, b"x"),
            "stream",
            E.STREAM_CLOSED,
        ),
        (
            START
            + frame(HEADER, 5, 1, request_block(**{":path": "/test.Test/Wait"}))
            + frame(HEADER, 5, 1, b""),
            "stream",
            E.STREAM_CLOSED,
        ),
        (START + OPEN + frame(HEADER, 4, 1, b""), "stream", E.PROTOCOL_ERROR),
        (START + OPEN + frame(HEADER, 5, 1, b"\x88"), "stream", E.PROTOCOL_ERROR),
        (START + frame(HEADER, 4, 1, BLOCK[1:]), "stream", E.PROTOCOL_ERROR),
        # 6: frames on the wrong stream, of the wrong size, with the wrong values.
        (START + frame(DATA, 0, 0, b"x"), "connection", E.PROTOCOL_ERROR),
        (START + frame(PRIORITY, 0, 0, bytes(5)), "connection", E.PROTOCOL_ERROR),
        (START + frame(PRIORITY, 0, 1, bytes(4)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(RST, 0, 0, bytes(4)), "connection", E.PROTOCOL_ERROR),
        (START + OPEN + frame(RST, 0, 1, bytes(5)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(SETTINGS, 0, 1), "connection", E.PROTOCOL_ERROR),
        (START + frame(SETTINGS, 0, 0, bytes(5)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(SETTINGS, ACK, 0, bytes(6)), "connection", E.FRAME_SIZE_ERROR),
        (START + setting(2, 2), "connection", E.PROTOCOL_ERROR),
        (START + setting(4, 2**31), "connection", E.FLOW_CONTROL_ERROR),
        (START + setting(5, 2**14 - 1), "connection", E.PROTOCOL_ERROR),
        (START + setting(5, 2**24), "connection", E.PROTOCOL_ERROR),
        (START + frame(PUSH, 4, 1, bytes(4) + BLOCK), "connection", E.PROTOCOL_ERROR),
        (START + frame(PING, 0, 1, bytes(8)), "connection", E.PROTOCOL_ERROR),
        (START + frame(PING, 0, 0, bytes(7)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(GOAWAY, 0, 1, bytes(8)), "connection", E.PROTOCOL_ERROR),
        (START + frame(GOAWAY, 0, 0, bytes(7)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(UPDATE, 0, 0, bytes(4)), "connection", E.PROTOCOL_ERROR),
        (START + frame(UPDATE, 0, 0, bytes(3)), "connection", E.FRAME_SIZE_ERROR),
        (START + OPEN + frame(UPDATE, 0, 1, bytes(4)), "stream", E.PROTOCOL_ERROR),
        (
            START + frame(UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
            "connection",
            E.FLOW_CONTROL_ERROR,
        ),
        (
            START + OPEN + frame(UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
            "stream",
            E.FLOW_CONTROL_ERROR,
        ),
        (
            START + OPEN + frame(UPDATE, 0, 1, b"\x7f\xff\0\0") + setting(4, 2**31 - 1),
            "connection",
            E.FLOW_CONTROL_ERROR,
        ),
        # 6.1, 6.2: padding.
        (START + OPEN + frame(DATA, PADDED, 1), "connection", E.FRAME_SIZE_ERROR),
        (
            START + OPEN + frame(DATA, PADDED, 1, b"\x03xx"),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (START + frame(HEADER, 4 | PADDED, 1), "connection", E.FRAME_SIZE_ERROR),
        (
            START + frame(HEADER, 4 | PADDED, 1, b"\xff" + BLOCK),
            "connection",
            E.PROTOCOL_ERROR,
        ),
        (
            START + frame(HEADER, 4 | PRIORITIZED, 1, b"\x83"),
            "connection",
            E.PROTOCOL_ERROR,
        ),
    ],
)
def test_what_breaks_the_rules(data, scope, code):
    limits = Limits(max_frame_bytes=2**14)
    assert verdict(data, limits) == (scope, code)


@pytest.mark.parametrize(
    "data",
    [
        START + frame(99, 255, 77, bytes(1000)) + OPEN,
        START + frame(SETTINGS, 0, 0, struct.pack(">HI", 0x99, 1)),
        START + frame(SETTINGS, ACK, 0),
        START + setting(1, 0) + setting(1, 1 << 20),
        START + frame(PRIORITY, 0, 7, bytes(5)),
        START + OPEN + frame(RST, 0, 1, bytes(4)) + frame(RST, 0, 1, bytes(4)),
        START
        + OPEN
        + frame(RST, 0, 1, bytes(4))
        + frame(UPDATE, 0, 1, bytes(3) + b"1"),
        START + frame(HEADER, 0, 1, BLOCK[:3]) + frame(MORE, 4, 1, BLOCK[3:]),
        START + frame(HEADER, 0, 1) + frame(MORE, 0, 1) + frame(MORE, 4, 1, BLOCK),
        START + frame(HEADER, 4 | PADDED, 1, b"\2" + BLOCK + bytes(2)),
        START + frame(HEADER, 4 | PRIORITIZED, 1, bytes(5) + BLOCK),
        START
        + frame(HEADER, PADDED | PRIORITIZED, 1, b"\1" + bytes(5) + BLOCK[:9] + b"\0")
        + frame(MORE, 4, 1, BLOCK[9:]),
        START
        + frame(HEADER, 4, 1 | 1 << 31, BLOCK)
        + frame(DATA, 0, 1 | 1 << 31, framed(b"x")),
        START + frame(GOAWAY, 0, 0, bytes(8) + b"debug") + OPEN,
    ],
)
def test_what_is_unusual_and_allowed(data):
    assert verdict(data) is None


def test_frames_that_cross_our_reset_are_ignored():
    machine = Machine()
    machine.feed(START + OPEN + frame(UPDATE, 0, 1, bytes(4)))
    crossing = (
        frame(DATA, 0, 1, framed(b"x"))
        + frame(HEADER, 5, 1, b"")
        + frame(UPDATE, 0, 1, bytes(3) + b"\1")
        + frame(RST, 0, 1, bytes(4))
    )
    assert machine.feed(crossing) == b""


# ---- floods ------------------------------------------------------------------------

BURST = 50
WAITING_BLOCK = request_block(**{":path": "/test.Test/Wait"})
HTTP_BLOCK = request_block(content_type="text/plain")
FLOOD_LIMITS = Limits(
    control_burst=BURST, control_per_s=10.0, reset_burst=BURST, resets_per_s=10.0
)


def opened_and_reset(n: int) -> bytes:
    stream = 2 * n + 3
    return frame(HEADER, 4, stream, BLOCK) + frame(RST, 0, stream, bytes(4))


def opened_and_wrong(n: int) -> bytes:
    """Return frames for a stream that the server must reset.

    The second HEADERS has no END_STREAM.
    """
    stream = 2 * n + 3
    return frame(HEADER, 4, stream, BLOCK) * 2


def answered_and_wrong(n: int) -> bytes:
    """Return frames with DATA after END_STREAM.

    The response on this stream is waiting for window credit.
    """
    stream = 2 * n + 3
    return frame(HEADER, 5, stream, WAITING_BLOCK) + frame(
        DATA, 0, stream, framed(b"x")
    )


FLOODS = {
    "ping": lambda n: frame(PING, 0, 0, bytes(8)),
    "ping acknowledgements": lambda n: frame(PING, ACK, 0, bytes(8)),
    "settings": lambda n: frame(SETTINGS, 0, 0),
    "settings acknowledgements": lambda n: frame(SETTINGS, ACK, 0),
    "priority": lambda n: frame(PRIORITY, 0, 1, bytes(5)),
    "window update": lambda n: frame(UPDATE, 0, 0, bytes(3) + b"\1"),
    "window update of a stream": lambda n: frame(UPDATE, 0, 1, bytes(3) + b"\1"),
    "empty data": lambda n: frame(DATA, 0, 1),
    "padding only": lambda n: frame(DATA, PADDED, 1, b"\0"),
    "padding of many bytes only": lambda n: frame(DATA, PADDED, 1, b"\7" + bytes(7)),
    "goaway": lambda n: frame(GOAWAY, 0, 0, bytes(8)),
    "requests that are not gRPC": lambda n: frame(HEADER, 5, 2 * n + 3, HTTP_BLOCK),
    "a second HEADERS": opened_and_wrong,
    "data after the end": answered_and_wrong,
    "unknown frames": lambda n: frame(99, 0, 0),
    "rapid reset": opened_and_reset,
    "malformed requests": lambda n: frame(HEADER, 5, 2 * n + 3, b"\x83"),
    "resets of closed streams": lambda n: frame(RST, 0, 1, bytes(4)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_ends_the_connection_and_a_trickle_does_not(kind):
    def one(n: int) -> bytes:
        return FLOODS[kind](n)

    flooded = Machine(FLOOD_LIMITS)
    flooded.feed(START + OPEN)
    sent = frames_in(flooded.feed(b"".join(map(one, range(2 * BURST)))))
    assert sent[-1].kind == GOAWAY
    assert sent[-1].code == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(sent) <= BURST + 2, "no more answers than frames that were allowed"
    assert flooded.connection.finished

    trickled = Machine(FLOOD_LIMITS)
    trickled.feed(START + OPEN)
    for n in range(5 * BURST):
        trickled.now += 0.15
        assert all(each.kind != GOAWAY for each in frames_in(trickled.feed(one(n))))
    assert not trickled.connection.finished


def test_streams_that_are_refused_are_counted():
    limits = Limits(control_burst=BURST, control_per_s=10.0, max_concurrent_streams=1)
    machine = Machine(limits)
    machine.feed(START + OPEN)
    refused = b"".join(frame(HEADER, 4, 2 * n + 3, BLOCK) for n in range(2 * BURST))
    sent = frames_in(machine.feed(refused))
    assert [each.code for each in sent[:BURST]] == [ErrorCodes.REFUSED_STREAM] * BURST
    assert sent[-1].code == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("size", "earns"), [(1, False), (MIN_WORK_BYTES - 1, False), (MIN_WORK_BYTES, True)]
)
def test_tiny_pieces_of_a_message_pay_for_nothing(size, earns):
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START + OPEN + frame(DATA, 0, 1, framed(bytes(1 << 20))[:1000]))
    for _ in range(2 * BURST):
        machine.feed(frame(DATA, 0, 1, bytes(size)) + frame(PING, 0, 0, bytes(8)))
    assert machine.connection.finished is not earns


def test_every_stream_may_be_reset_at_once():
    """A normal client does this if the shared context of all its calls is canceled."""
    machine = Machine()
    machine.feed(START)
    streams = range(1, 2 * Limits().max_concurrent_streams, 2)
    machine.feed(b"".join(frame(HEADER, 4, n, WAITING_BLOCK) for n in streams))
    assert machine.connection.open_calls == len(streams)
    machine.feed(b"".join(frame(RST, 0, n, bytes(4)) for n in streams))
    assert not machine.connection.finished
    assert machine.connection.open_calls == 0


# ---- frames that cause much work -----------------------------------------------------


def settings_of(*windows: int) -> bytes:
    return frame(
        SETTINGS, 0, 0, b"".join(struct.pack(">HI", 4, window) for window in windows)
    )


def test_settings_of_many_entries_are_refused_at_the_head():
    machine = Machine()
    machine.feed(START)
    sent = frames_in(machine.feed(settings_of(*[65_535] * 33)[:9]))
    assert sent[-1].code == ErrorCodes.ENHANCE_YOUR_CALM
    assert verdict(START + settings_of(*[65_535] * 32)) is None
    assert verdict(frame(SETTINGS, 0, 0, bytes(198))) is not None


def test_the_last_of_many_windows_counts_and_streams_are_visited_once(monkeypatch):
    machine = Machine()
    machine.feed(START + OPEN)
    resized = mock.Mock(wraps=machine.connection._calls.out.resize_windows)
    monkeypatch.setattr(machine.connection._calls.out, "resize_windows", resized)
    machine.feed(settings_of(*[1, 2**31 - 1] * 15, 70_000))
    (stream,) = machine.connection._streams.values()
    assert stream.window == 70_000
    assert resized.call_count == 1
    assert frames_in(machine.feed(settings_of(2**31, 1)))[-1].code == (
        ErrorCodes.FLOW_CONTROL_ERROR
    ), "each value has to be one that is allowed"


def test_a_window_update_visits_only_streams_that_it_can_send_for(monkeypatch):
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START)
    answers = 40
    for n in range(answers):
        stream = 2 * n + 1
        asked = frame(HEADER, 4, stream, BLOCK) + frame(
            DATA, 0, stream, framed(bytes(3_000))
        )
        machine.feed(asked)
    visited = mock.Mock(wraps=machine.connection._calls.out._flush)
    monkeypatch.setattr(machine.connection._calls.out, "_flush", visited)
    for _ in range(BURST // 2):
        (sent,) = frames_in(machine.feed(frame(UPDATE, 0, 0, bytes(3) + b"\1")))
        assert len(sent.payload) == 1
    assert visited.call_count <= BURST
    flood = machine.feed(frame(UPDATE, 0, 0, bytes(3) + b"\1") * BURST)
    assert frames_in(flood)[-1].code == ErrorCodes.ENHANCE_YOUR_CALM


PINGS = frame(PING, 0, 0, bytes(8)) * 200
REQUESTS = b"".join(frame(HEADER, 5, 2 * n + 1, BLOCK) for n in range(200))
MESSAGES = OPEN + frame(DATA, 0, 1, framed(*[b""] * 200))
MIXED = OPEN + frame(DATA, PADDED, 1, b"\1" + framed(*[b"x"] * 90) + b"\0") * 2


@pytest.mark.parametrize("sent", [PINGS, REQUESTS, MESSAGES, MIXED])
def test_a_long_read_is_worked_through_in_short_turns(sent):
    whole, turns = Machine(), Machine()
    expected = whole.feed(START + sent)
    turns.feed(START)
    assert not turns.connection.behind
    answers, count = [], 0
    turns.connection.receive(sent, turns.now, lambda: False)
    while turns.connection.behind:
        count += 1
        answers.append(turns.connection.take())
        assert len(frames_in(answers[-1])) <= 4 * 20
        turns.connection.receive(b"", turns.now, lambda: False)
    answers.append(turns.connection.take())
    assert count >= 2
    assert expected.endswith(b"".join(answers))
    assert [c.received for c in turns.calls] == [c.received for c in whole.calls]


def test_what_waits_for_a_turn_is_worked_through_before_the_end():
    machine = Machine()
    machine.feed(START)
    ends = frame(GOAWAY, 0, 0, bytes(8)) + PINGS + OPEN
    machine.connection.receive(ends, machine.now, lambda: False)
    assert machine.connection.behind
    assert not machine.connection.finished
    machine.feed(b"")
    assert len(machine.calls) == 1


def test_a_flood_of_continuations_ends_the_connection():
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START)
    empty = frame(HEADER, 0, 1) + frame(MORE, 0, 1) * (2 * BURST)
    assert frames_in(machine.feed(empty))[-1].code == ErrorCodes.ENHANCE_YOUR_CALM
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START)
    small = frame(HEADER, 0, 1) + frame(MORE, 0, 1, b"\x83") * (2 * BURST)
    assert frames_in(machine.feed(small))[-1].code == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_header_block_without_end_is_bounded():
    machine = Machine(Limits(max_header_list_bytes=1024, control_burst=10_000))
    machine.feed(START + frame(HEADER, 0, 1, bytes(1000)))
    answers = [machine.feed(frame(MORE, 0, 1, bytes(1000))) for _ in range(5)]
    assert answers[:3] == [b""] * 3
    assert frames_in(answers[3])[-1].code == ErrorCodes.ENHANCE_YOUR_CALM


def test_frames_that_come_with_data_are_no_flood():
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START + OPEN)
    for _ in range(10 * BURST):
        machine.feed(
            frame(DATA, 0, 1, framed(b"x"))
            + frame(UPDATE, 0, 1, bytes(3) + b"\6")
            + frame(UPDATE, 0, 0, bytes(3) + b"\6")
            + frame(PING, 0, 0, bytes(8))
        )
    assert not machine.connection.finished
    assert len(machine.calls[0].received) == 10 * BURST


def test_resets_after_an_answer_are_no_flood():
    """Envoy ends nearly every ext_proc stream with a reset."""
    machine = Machine(FLOOD_LIMITS)
    machine.feed(START)
    for n in range(10 * BURST):
        stream = 2 * n + 1
        machine.feed(
            frame(HEADER, 4, stream, BLOCK)
            + frame(DATA, 0, stream, framed(b"x"))
            + frame(RST, 0, stream, bytes(4))
        )
    assert not machine.connection.finished
    assert machine.connection.open_calls == 0


def test_a_budget_is_refilled_by_time_and_by_work():
    budget = Budget(burst=2, per_s=1.0, per_work=3)
    assert [budget.spend(0.0, 0) for _ in range(3)] == [True, True, False]
    assert [budget.spend(1.0, 0) for _ in range(2)] == [True, False]
    assert [budget.spend(1.0, 5) for _ in range(3)] == [True, True, False]
    assert budget.spend(0.0, 5) is False, "a clock that goes back gives nothing"


def test_windows_that_the_peer_overruns_end_the_connection():
    limits = Limits(stream_window_bytes=20_000, connection_window_bytes=1 << 20)
    machine = Machine(limits)
    machine.feed(START + OPEN)
    overrun = frame(DATA, 0, 1, framed(bytes(25_000)))
    assert frames_in(machine.feed(overrun))[-1].code == ErrorCodes.FLOW_CONTROL_ERROR
    limits = Limits(stream_window_bytes=1 << 20, connection_window_bytes=65_535)
    machine = Machine(limits)
    machine.feed(START + OPEN)
    overrun = frame(DATA, 0, 1, framed(bytes(70_000)))
    assert frames_in(machine.feed(overrun))[-1].code == ErrorCodes.FLOW_CONTROL_ERROR
