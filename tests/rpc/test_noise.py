"""Peers that send noise, or valid frames with some faults, tested by bytes in and out."""

import itertools
from collections.abc import Callable
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.rpc.limits import Limits

from .frame_bytes import (
    BLOCK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    MORE,
    PADDED,
    PING,
    RST,
    START,
    UPDATE,
    frame,
    frames_in,
    request_block,
    setting,
)
from .peers import Machine, framed

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
    """Draw the bytes of a client, which are mostly valid, with occasional faults."""
    data, streams = START, [1]
    data += frame(HEADER, END_HEADERS, 1, BLOCK)
    for _ in range(draw(st.integers(0, 20))):
        stream = draw(st.sampled_from(streams))
        match draw(st.sampled_from("OOODDDDDDDDEPRWWCSI?")):
            case "O":
                streams.append(streams[-1] + 2)
                block = request_block(**{":path": f"/test.Test/{draw(PATHS)}"})
                cut = draw(st.integers(0, len(block)) | st.just(len(block)))
                data += frame(HEADER, 4 * (cut == len(block)), streams[-1], block[:cut])
                if cut < len(block):
                    data += frame(MORE, END_HEADERS, streams[-1], block[cut:])
            case "D":
                data += frame(DATA, 0, stream, draw(BODIES | TORN))
            case "E":
                data += frame(DATA, END_STREAM, stream, draw(BODIES))
            case "P":
                body, size = draw(BODIES | TORN), draw(st.integers(0, 9))
                padded = bytes((size,)) + body + bytes(size)
                data += frame(DATA, PADDED, stream, padded)
            case "R":
                data += frame(RST, 0, stream, bytes(4))
            case "W":
                data += frame(UPDATE, 0, stream, draw(CREDIT))
            case "C":
                data += frame(UPDATE, 0, 0, draw(CREDIT))
            case "S":
                data += draw(SETTING)
            case "I":
                data += frame(PING, 0, 0, b"12345678")
            case "?":
                data += draw(ANY_FRAME)
    return data


SMALL_LIMITS = Limits(
    max_concurrent_streams=3,
    max_message_bytes=1024,
    max_buffered_bytes=60,
    max_queued_bytes=200,
    max_lingering_streams=2,
    stream_window_bytes=1024,
)


def fed(
    data: bytes, cuts: list[int], limits: Limits, **options: Callable[[], bool]
) -> tuple[bytes, Machine]:
    """Return a machine's response to bytes that arrive in pieces."""
    machine = Machine(limits)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    answers = [
        machine.feed(data[start:stop], **options)
        for start, stop in itertools.pairwise(edges)
    ]
    return b"".join(answers), machine


REFUSED = b"too many incomplete messages"


def check(data: bytes, cuts: list[int], limits: Limits) -> None:
    """Check that there are no exceptions, no invalid frames, no effects of the split,
    and no calls left open.

    The split has one effect: a message in one piece is never held, so pieces of it may
    reach ``max_buffered_bytes`` where the whole does not.
    """
    whole, machine = fed(data, [], limits)
    frames_in(whole)
    with mock.patch("extproc.rpc.connection._STEP_BYTES", 1):
        stepwise = fed(data, cuts, limits, may_go_on=lambda: False)
    single = fed(data, list(range(len(data))), limits)
    split = [fed(data, cuts, limits), stepwise, single]
    for answer, other in split:
        if REFUSED not in answer:
            assert answer == whole
            assert received(other) == received(machine)
    for each in (machine, *(other for _, other in split)):
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


def received(machine: Machine) -> list[list[bytes]]:
    """Return the messages of each call."""
    return [list(call.received) for call in machine.calls]


def test_only_pieces_of_a_message_reach_the_limit_of_incomplete_ones() -> None:
    limits = Limits(max_buffered_bytes=60)
    incomplete = frame(DATA, 0, 1, framed(bytes(60))[:55])
    opened = START + b"".join(
        frame(HEADER, END_HEADERS, stream, request_block()) for stream in (1, 3)
    )
    message = frame(DATA, 0, 3, framed(bytes(18)))

    whole, machine = fed(opened + incomplete + message, [], limits)
    assert REFUSED not in whole
    assert machine.calls[1].received == [bytes(18)]

    middle = len(opened + incomplete) + 30
    pieces, _ = fed(opened + incomplete + message, [middle], limits)
    assert REFUSED in pieces


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
def test_conversations_with_faults(data, cuts):
    check(data, cuts, SMALL_LIMITS)


@settings(deadline=None)
@given(conversations())
def test_conversations_with_faults_and_room(data):
    check(data, [7], Limits())
