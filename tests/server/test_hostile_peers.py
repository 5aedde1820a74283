"""Peers that break the rules, flood, or send noise: octets in, octets out."""

import itertools
import struct
from dataclasses import dataclass

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import Frame
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.server.limits import Budget, Limits

from .peers import HEADERS, Machine, framed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADER, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, MORE = range(10)
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(
        ">BBI", kind, flags, stream
    ) + payload  # fmt: skip


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def request_block(**changes: str | None) -> bytes:
    """A header block that depends on no table."""
    fields = {**HEADERS, **{n.replace("_", "-"): v for n, v in changes.items()}}
    encoder = Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([(n, v) for n, v in fields.items() if v is not None])
    return block.removeprefix(b"\x20")


BLOCK = request_block()
START = PREFACE + frame(SETTINGS, 0, 0)
OPEN = frame(HEADER, END_HEADERS, 1, BLOCK)
ANSWERED = frame(HEADER, END_HEADERS, 1, request_block(**{":path": "/test.Test/Once"}))


@dataclass(frozen=True)
class Sent:
    """A frame that the machine sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int | None:
        """The error code of a RST_STREAM or a GOAWAY."""
        if self.kind == RST:
            return int.from_bytes(self.payload, "big")
        if self.kind == GOAWAY:
            return int.from_bytes(self.payload[4:8], "big")
        return None


def frames_in(octets: bytes) -> list[Sent]:
    """Take frames apart, and have hyperframe agree that they are frames."""
    found, view = [], memoryview(octets)
    while view:
        parsed, size = Frame.parse_frame_header(view[:9], strict=True)
        assert len(view) >= 9 + size
        parsed.parse_body(view[9 : 9 + size])
        stream = int.from_bytes(view[5:9], "big")
        found.append(Sent(view[3], view[4], stream, bytes(view[9 : 9 + size])))
        view = view[9 + size :]
    return found


def verdict(octets: bytes, limits: Limits | None = None) -> tuple[str, int] | None:
    """Feed a machine: how the last error that it announced reads."""
    machine = Machine(limits)
    machine.connection.take()
    sent = frames_in(machine.feed(octets))
    errors = [each for each in sent if each.kind in (RST, GOAWAY)]
    machine.connection.lost()
    assert all(len(call.closed_with) == 1 for call in machine.calls)
    if not errors:
        return None
    last = errors[-1]
    assert (last.kind == GOAWAY) == machine.connection.finished or last.kind == RST
    return ("connection" if last.kind == GOAWAY else "stream"), last.code


E = ErrorCodes


@pytest.mark.parametrize(
    ("octets", "scope", "code"),
    [
        # 3.4: preface, and SETTINGS first.
        (b"GET / HTTP/1.1\r\n\r\n", "connection", E.PROTOCOL_ERROR),
        (PREFACE[:-1] + b"x", "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(PING, 0, 0, bytes(8)), "connection", E.PROTOCOL_ERROR),
        (PREFACE + OPEN, "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, ACK, 0), "connection", E.PROTOCOL_ERROR),
        (PREFACE + frame(99, 0, 0), "connection", E.PROTOCOL_ERROR),
        # 4.2: sizes.
        (START + frame(DATA, 0, 1, bytes(2**14 + 1)), "connection", E.FRAME_SIZE_ERROR),
        (START + frame(99, 0, 0, bytes(2**14 + 1)), "connection", E.FRAME_SIZE_ERROR),
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
def test_what_breaks_the_rules(octets, scope, code):
    limits = Limits(max_frame_bytes=2**14)
    assert verdict(octets, limits) == (scope, code)


@pytest.mark.parametrize(
    "octets",
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
def test_what_is_unusual_and_allowed(octets):
    assert verdict(octets) is None


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


# ---- floods -------------------------------------------------------------------------

BURST = 50
FLOOD_LIMITS = Limits(
    control_burst=BURST, control_per_s=10.0, reset_burst=BURST, resets_per_s=10.0
)


def opened_and_reset(n: int) -> bytes:
    stream = 2 * n + 3
    return frame(HEADER, 4, stream, BLOCK) + frame(RST, 0, stream, bytes(4))


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


# ---- noise --------------------------------------------------------------------------

BODIES = st.lists(st.binary(max_size=20), max_size=3).map(lambda m: framed(*m))
TORN = st.tuples(BODIES, st.integers(0, 9)).map(lambda t: t[0][: -t[1] or None])
PATHS = st.sampled_from(
    ["Echo", "Once", "Silent", "Repeat", "Fail", "Deny", "FailLate"]
)
CREDIT = st.integers(1, 5_000).map(lambda n: n.to_bytes(4, "big"))
SETTING = st.builds(
    setting, st.sampled_from([3, 4, 5]), st.sampled_from([0, 1, 20, 16_384, 65_535])
)
ANY_FRAME = st.builds(
    frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=30)
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """What a client says that mostly keeps to the rules, with a fault here and there."""
    octets, streams = START, [1]
    octets += frame(HEADER, END_HEADERS, 1, BLOCK)
    for _ in range(draw(st.integers(0, 20))):
        stream = draw(st.sampled_from(streams))
        match draw(st.sampled_from("OOODDDDDDDDEPRWWCSI?")):
            case "O":
                streams.append(streams[-1] + 2)
                block = request_block(**{":path": f"/test.Test/{draw(PATHS)}"})
                cut = draw(st.integers(0, len(block)) | st.just(len(block)))
                octets += frame(
                    HEADER, 4 * (cut == len(block)), streams[-1], block[:cut]
                )
                if cut < len(block):
                    octets += frame(MORE, END_HEADERS, streams[-1], block[cut:])
            case "D":
                octets += frame(DATA, 0, stream, draw(BODIES | TORN))
            case "E":
                octets += frame(DATA, END_STREAM, stream, draw(BODIES))
            case "P":
                body, size = draw(BODIES | TORN), draw(st.integers(0, 9))
                padded = bytes((size,)) + body + bytes(size)
                octets += frame(DATA, PADDED, stream, padded)
            case "R":
                octets += frame(RST, 0, stream, bytes(4))
            case "W":
                octets += frame(UPDATE, 0, stream, draw(CREDIT))
            case "C":
                octets += frame(UPDATE, 0, 0, draw(CREDIT))
            case "S":
                octets += draw(SETTING)
            case "I":
                octets += frame(PING, 0, 0, b"12345678")
            case "?":
                octets += draw(ANY_FRAME)
    return octets


SMALL_LIMITS = Limits(
    max_concurrent_streams=3,
    max_message_bytes=1024,
    max_buffered_bytes=60,
    max_queued_bytes=200,
    max_lingering_streams=2,
    stream_window_bytes=1024,
)


def fed(octets: bytes, cuts: list[int], limits: Limits) -> tuple[bytes, Machine]:
    """What a machine answers to octets that arrive in pieces."""
    machine = Machine(limits)
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    answers = [
        machine.feed(octets[start:stop]) for start, stop in itertools.pairwise(edges)
    ]
    return b"".join(answers), machine


def check(octets: bytes, cuts: list[int], limits: Limits) -> None:
    """No exception, valid frames, the same whatever the pieces, every call closed."""
    whole, machine = fed(octets, [], limits)
    frames_in(whole)
    pieces, other = fed(octets, cuts, limits)
    assert pieces == whole
    single, third = fed(octets, list(range(len(octets))), limits)
    assert single == whole
    for each in (machine, other, third):
        calls = each.connection._calls
        held = sum(
            stream.incoming.held_bytes
            for stream in calls.streams.values()
            if stream.incoming is not None
        )
        assert calls._held_bytes == held
        assert calls._held_bytes <= limits.max_buffered_bytes
        assert calls.out.queued_bytes <= limits.max_queued_bytes
        each.connection.lost()
        assert calls._held_bytes == calls.out.queued_bytes == 0
        assert [len(call.closed_with) for call in each.calls] == [1] * len(each.calls)
        assert [call.received for call in each.calls] == [
            call.received for call in machine.calls
        ]


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=5))
def test_noise_after_the_preface(noise, cuts):
    check(START + noise, cuts, SMALL_LIMITS)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_instead_of_a_preface(noise):
    machine = Machine()
    machine.feed(noise)
    assert machine.calls == []


@settings(deadline=None)
@given(conversations(), st.lists(st.integers(0, 2000), max_size=8))
def test_conversations_with_faults(octets, cuts):
    check(octets, cuts, SMALL_LIMITS)


@settings(deadline=None)
@given(conversations())
def test_conversations_with_faults_and_room(octets):
    check(octets, [7], Limits())
