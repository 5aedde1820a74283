"""The machine limits the resources that a peer can use; h2 is the peer."""

import h2.errors
import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from h2.settings import SettingCodes

from extproc.rpc.limits import Held, Limits

from .frame_bytes import (
    BLOCK,
    DATA,
    END_HEADERS,
    HEADER,
    MORE,
    OPEN,
    PING,
    RST,
    START,
    frame,
    frames_in,
)
from .peers import H2Peer, Machine, framed


def test_streams_over_the_limit_are_refused_and_others_go_on():
    peer = H2Peer(Limits(max_concurrent_streams=2))
    first, second = peer.request(), peer.request()
    # Imitate a client that has not received the SETTINGS yet. Otherwise, h2 would
    # respect the limit.
    peer.client.remote_settings.max_concurrent_streams = 100
    peer.client.remote_settings.acknowledge()
    third = peer.request()
    assert peer.response(third).reset == h2.errors.ErrorCodes.REFUSED_STREAM
    for stream in (first, second):
        peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(first).status == peer.response(second).status == 0
    fourth = peer.request("/test.Test/Echo", b"y", ends=True)
    assert peer.response(fourth).messages == [b"y"]


def test_a_message_over_the_limit_ends_its_stream():
    peer = H2Peer(Limits(max_message_bytes=2_000))
    stream = peer.request("/test.Test/Echo", b"x" * 2_000)
    assert peer.response(stream).messages == [b"x" * 2_000]
    peer.client.send_data(stream, framed(b"x" * 2_001))
    peer.exchange()
    assert peer.response(stream).status == 8
    assert peer.machine.calls[0].closed_with == [True]


def test_incomplete_messages_are_bounded_together():
    peer = H2Peer(Limits(max_buffered_bytes=10_000))
    streams = [peer.request("/test.Test/Silent") for _ in range(3)]
    for stream in streams:
        peer.client.send_data(stream, framed(b"x" * 8_000)[:4_005])
        peer.exchange()
    assert [bool(peer.response(stream).trailers or peer.response(stream).headers) for stream in streams] == [False, False, True]  # fmt: skip
    assert peer.response(streams[2]).status == 8
    for stream in streams[:2]:
        peer.client.send_data(stream, b"x" * 4_000, end_stream=True)
        peer.exchange()
        assert peer.response(stream).status == 0
    # A complete message, an error and a reset each release the buffered bytes.
    for _ in range(20):
        stream = peer.request("/test.Test/Silent")
        peer.client.send_data(stream, framed(b"x" * 9_000)[:8_000])
        peer.exchange()
        peer.client.reset_stream(stream)
        peer.exchange()
        assert peer.response(stream).headers == {}


def test_replies_that_are_not_read_are_bounded():
    peer = H2Peer(
        Limits(max_queued_bytes=100_000),
        acknowledge=False,
        settings={SettingCodes.INITIAL_WINDOW_SIZE: 0},
    )
    first = peer.request("/test.Test/Repeat", b"x" * 30_000)
    second = peer.request("/test.Test/Repeat", b"x" * 30_000)
    assert peer.response(first).reset is None
    assert peer.response(second).reset == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert peer.machine.calls[1].closed_with == [True]
    peer.client.increment_flow_control_window(100_000, first)
    peer.client.increment_flow_control_window(100_000)
    peer.exchange()
    assert peer.response(first).messages == [b"x" * 30_000] * 3


def test_too_large_a_header_list_is_refused_and_the_connection_goes_on():
    peer = H2Peer(Limits(max_header_list_bytes=2_000))
    big = peer.request(headers={"x-big": "b" * 2_000})
    assert peer.response(big).status == 8
    small = peer.request("/test.Test/Echo", b"x", ends=True)
    assert peer.response(small).messages == [b"x"]


def test_a_far_too_large_header_list_ends_the_connection():
    peer = H2Peer(Limits(max_header_list_bytes=2_000))
    peer.request(headers={"x-big": "b" * 20_000})
    (end,) = peer.has(ConnectionTerminated)
    assert end.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert peer.machine.connection.finished


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_concurrent_streams": 0},
        {"max_frame_bytes": 2**14 - 1},
        {"max_frame_bytes": 2**24},
        {"connection_window_bytes": 65_534},
        {"stream_window_bytes": 2**31},
        {"max_message_bytes": 0},
    ],
    ids=str,
)
def test_limits_that_http2_does_not_allow_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# ---- incomplete frames: limits in total and in time ----------------------------------


def test_incomplete_messages_of_all_connections_are_bounded_together():
    held = Held(limit_bytes=100_000)
    machines = [Machine(held=held) for _ in range(3)]
    begun = framed(bytes(1 << 20))[:50_000]
    refused = 0
    for machine in machines:
        machine.feed(START + OPEN)
        answer = machine.feed(frame(DATA, 0, 1, begun))
        refused += b"grpc-status\x018" in answer
        assert held.held_bytes <= held.limit_bytes
    assert refused == 1
    machines[0].connection.lost()
    assert held.held_bytes == len(begun) - 5
    machines[1].feed(frame(RST, 0, 1, bytes(4)))
    assert held.held_bytes == 0


def test_a_message_that_does_not_grow_ends_its_stream():
    machine = Machine(Limits(message_s=30.0))
    machine.feed(START + OPEN + frame(HEADER, END_HEADERS, 3, BLOCK))
    for stream in (1, 3):
        machine.feed(frame(DATA, 0, stream, framed(b"message")[:6]))
    machine.now += 20
    machine.feed(frame(DATA, 0, 3, b"e"))
    assert machine.connection.next_deadline == machine.now + 10
    machine.now += 10
    machine.connection.expire(machine.now)
    (ended,) = frames_in(machine.connection.take())
    assert ended.stream == 1
    assert b"grpc-status\x014" in ended.payload
    machine.feed(frame(DATA, 0, 3, b"ssage"))
    assert machine.calls[1].received == [b"message"]
    assert machine.connection.next_deadline is None


PARTS = [
    START + frame(HEADER, 0, 1, BLOCK[:3]),
    START + frame(HEADER, 0, 1, BLOCK[:3]) + frame(MORE, 0, 1, BLOCK[3:4]),
    START + OPEN[:-1],
    START + OPEN[:3],
]


@pytest.mark.parametrize("begun", PARTS)
def test_a_frame_or_a_header_block_that_stays_incomplete_ends_the_connection(begun):
    machine = Machine(Limits(header_block_s=10.0))
    machine.feed(begun)
    assert machine.connection.next_deadline == machine.now + 10
    machine.connection.expire(machine.now + 9)
    assert not machine.connection.finished
    machine.connection.expire(machine.now + 10)
    (said,) = frames_in(machine.connection.take())[-1:]
    assert said.code == ErrorCodes.ENHANCE_YOUR_CALM
    assert machine.connection.finished


def test_a_trickled_header_block_is_no_progress():
    machine = Machine(Limits(header_block_s=10.0))
    machine.feed(START + frame(HEADER, 0, 1, BLOCK[:1]))
    began = machine.now
    for at in range(1, 6):
        machine.now += 1
        machine.feed(frame(MORE, 0, 1, BLOCK[at : at + 1]))
    assert machine.connection.next_deadline == began + 10


def test_reads_that_end_inside_frames_are_no_fault():
    machine = Machine(Limits(header_block_s=10.0))
    machine.feed(START + OPEN)
    pings = frame(PING, 0, 0, bytes(8)) * 100
    for at in range(0, len(pings), 20):
        machine.now += 1
        machine.feed(pings[at : at + 20])
        machine.connection.expire(machine.now)
    assert not machine.connection.finished
    assert machine.connection.next_deadline is None
