"""Frames that break the protocol's rules, and unusual frames that keep to them."""

import struct

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder

from extproc.rpc.limits import Limits

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
