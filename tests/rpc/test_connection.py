"""The HTTP/2 machine in memory exchanges frames and messages with an h2 client."""

import h2.errors
import pytest
from h2.events import (
    PingAckReceived,
    SettingsAcknowledged,
)
from h2.settings import SettingCodes

from extproc.rpc.limits import Limits

from .peers import HEADERS, H2Peer, framed


def test_messages_are_answered_in_order_and_the_end_is_ok():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"one", b"", b"three", ends=True)
    response = peer.response(stream)
    assert response.headers == {":status": "200", "content-type": "application/grpc"}
    assert response.messages == [b"one", b"", b"three"]
    assert response.trailers == {"grpc-status": "0"}
    assert response.ended
    (call,) = peer.machine.calls
    assert call.received == [b"one", b"", b"three"]
    assert call.closed_with == [False]
    assert peer.has(SettingsAcknowledged)


def test_a_call_sees_path_and_headers():
    peer = H2Peer()
    peer.request("/test.Test/Echo", headers={"x-a": "1", "user-agent": "h2"})
    (call,) = peer.machine.calls
    assert call.path == "/test.Test/Echo"
    assert call.headers == {
        "te": "trailers",
        "content-type": "application/grpc",
        "x-a": "1",
        "user-agent": "h2",
    }


def test_the_server_may_end_first_and_the_stream_lingers_until_the_client_does():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"question")
    assert peer.response(stream).messages == [b"question"]
    assert peer.response(stream).status == 0
    assert peer.response(stream).reset is None
    assert peer.machine.calls[0].closed_with == [False]
    assert peer.machine.connection.open_calls == 0
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].closed_with == [False]


def test_a_client_that_sends_on_after_the_answer_is_asked_to_stop():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"question")
    peer.client.send_data(stream, framed(b"more"))
    peer.exchange()
    assert peer.response(stream).reset == h2.errors.ErrorCodes.NO_ERROR
    assert peer.machine.calls[0].received == [b"question"]


def test_of_many_lingering_streams_the_oldest_are_reset():
    peer = H2Peer(Limits(max_lingering_streams=2, max_concurrent_streams=4))
    streams = [peer.request("/test.Test/Once", b"x") for _ in range(8)]
    resets = [peer.response(stream).reset for stream in streams]
    assert resets == [h2.errors.ErrorCodes.NO_ERROR] * 6 + [None] * 2


def test_half_close_is_answered():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"a", b"b")
    assert peer.response(stream).headers == {}
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.response(stream).messages == [b"2"]
    assert peer.response(stream).status == 0


def test_trailers_end_a_request():
    peer = H2Peer()
    stream = peer.request("/test.Test/Silent", b"a")
    peer.client.send_headers(stream, [("x-checksum", "1")], end_stream=True)
    peer.exchange()
    assert peer.response(stream).messages == [b"1"]


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 7, 19, 20])
def test_messages_are_put_together_from_pieces(cut):
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo")
    data = framed(b"first", b"", b"second message")
    for at in range(0, len(data), cut):
        peer.client.send_data(stream, data[at : at + cut])
        peer.exchange()
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].received == [b"first", b"", b"second message"]
    assert peer.response(stream).status == 0


def test_a_message_in_very_many_pieces():
    peer = H2Peer()
    body = bytes(range(250)) * 8
    stream = peer.request("/test.Test/Silent")
    for byte in framed(body):
        peer.client.send_data(stream, bytes((byte,)))
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.calls[0].received == [body]
    assert peer.response(stream).status == 0


def test_what_follows_the_last_message_in_its_frame_is_dropped():
    peer = H2Peer()
    stream = peer.request("/test.Test/Once", b"last", b"", b"dropped", ends=True)
    assert peer.machine.calls[0].received == [b"last"]
    assert peer.response(stream).messages == [b"last"]
    other = peer.request("/test.Test/Once", b"", b"dropped")
    assert peer.machine.calls[1].received == [b""]
    assert peer.response(other).status == 0


def test_a_large_message_of_many_frames():
    peer = H2Peer(settings={SettingCodes.MAX_FRAME_SIZE: 2**14})
    body = bytes(range(256)) * 2000
    stream = peer.request("/test.Test/Echo")
    data = framed(body)
    for at in range(0, len(data), 16_000):
        peer.client.send_data(stream, data[at : at + 16_000])
    peer.exchange()
    assert peer.machine.calls[0].received == [body]
    assert peer.response(stream).messages == [body]


def test_padding_is_not_content_but_counts_as_received():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo")
    data = framed(b"padded")
    peer.client.send_data(stream, data[:3], pad_length=200)
    peer.client.send_data(stream, data[3:], pad_length=0)
    peer.client.send_data(stream, b"", pad_length=7)
    peer.client.send_data(stream, framed(b"again"), pad_length=1, end_stream=True)
    peer.exchange()
    assert peer.response(stream).messages == [b"padded", b"again"]
    assert peer.response(stream).status == 0


def test_priorities_are_ignored():
    peer = H2Peer()
    stream = peer.client.get_next_available_stream_id()
    peer.client.prioritize(stream + 10, weight=5)
    peer.client.send_headers(
        stream,
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
        priority_weight=12,
        priority_depends_on=0,
        priority_exclusive=True,
    )
    peer.client.send_data(stream, framed(b"x"), end_stream=True)
    peer.exchange()
    assert peer.response(stream).status == 0


def test_ping_is_answered():
    peer = H2Peer()
    peer.client.ping(b"12345678")
    peer.exchange()
    assert [event.ping_data for event in peer.has(PingAckReceived)] == [b"12345678"]


def test_many_streams_at_once_do_not_mix():
    peer = H2Peer()
    streams = [peer.request("/test.Test/Echo", b"%d a" % n) for n in range(50)]
    for n, stream in enumerate(reversed(streams)):
        peer.client.send_data(stream, framed(b"%d b" % n), end_stream=n % 2 == 0)
    peer.exchange()
    for n, stream in enumerate(streams):
        assert peer.response(stream).messages == [b"%d a" % n, b"%d b" % (49 - n)]
