"""What a peer may ask for is bounded; h2 is the peer."""

import h2.errors
import pytest
from h2.events import ConnectionTerminated
from h2.settings import SettingCodes

from extproc.rpc.limits import Limits

from .peers import H2Peer, framed


def test_streams_over_the_limit_are_refused_and_others_go_on():
    peer = H2Peer(Limits(max_concurrent_streams=2))
    first, second = peer.request(), peer.request()
    # h2 keeps to the limit; a client that has not seen our SETTINGS yet would not.
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
    # What they held has been given back, by messages, errors and resets alike.
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
