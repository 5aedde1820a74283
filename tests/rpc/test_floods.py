"""Floods of frames that carry no content end the connection, and normal use does not."""

import pytest
from h2.errors import ErrorCodes

from extproc.rpc.limits import MIN_WORK_BYTES, Budget, Limits

from .frame_bytes import (
    ACK,
    BLOCK,
    DATA,
    GOAWAY,
    HEADER,
    MORE,
    OPEN,
    PADDED,
    PING,
    PRIORITY,
    RST,
    SETTINGS,
    START,
    UPDATE,
    frame,
    frames_in,
    request_block,
)
from .peers import Machine, framed

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
