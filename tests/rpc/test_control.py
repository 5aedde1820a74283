"""Draining and closing a connection to an h2 client."""

from h2.events import ConnectionTerminated

from .peers import HEADERS, H2Peer, framed


def test_drain_lets_open_calls_end_and_accepts_those_under_way():
    peer = H2Peer()
    connection = peer.machine.connection
    stream = peer.request("/test.Test/Echo", b"x")
    connection.drain()
    farewell = connection.take()
    # A request that the client sends before it receives the first GOAWAY is still
    # served.
    crossing = peer.client.get_next_available_stream_id()
    peer.client.send_headers(
        crossing,
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
    )
    peer.client.send_data(crossing, framed(b"crossing"))
    answer = peer.machine.feed(peer.client.data_to_send())
    assert framed(b"crossing") in answer
    assert not connection.finished
    # The test sends raw bytes, because h2's client accepts nothing after a GOAWAY.
    assert farewell.endswith(b"\0\0\x08\x06\0\0\0\0\0draining")
    last_goaway = peer.machine.feed(b"\0\0\x08\x06\1\0\0\0\0draining")
    assert last_goaway == b"\0\0\x08\x07\0\0\0\0\0" + bytes((0, 0, 0, crossing)) + bytes(4)  # fmt: skip
    assert not connection.finished
    refused = peer.machine.feed(
        b"\0\0\1\1\5\0\0\0\x09\x83"  # incomplete HEADERS: malformed, and therefore reset
        + b"\0\0\x05\0\1"
        + stream.to_bytes(4, "big")
        + framed(b"")
    )
    assert b"grpc-status\x010" in refused
    assert connection.finished
    assert [call.closed_with for call in peer.machine.calls] == [[False], [False]]


def test_streams_after_the_drain_are_refused():
    peer = H2Peer()
    connection = peer.machine.connection
    peer.request("/test.Test/Echo", b"x")
    connection.drain()
    connection.take()
    peer.machine.feed(b"\0\0\x08\x06\1\0\0\0\0draining")
    peer.client.send_headers(
        peer.client.get_next_available_stream_id(),
        list((HEADERS | {":path": "/test.Test/Once"}).items()),
    )
    answer = peer.machine.feed(peer.client.data_to_send())
    assert answer == b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x07"
    assert len(peer.machine.calls) == 1


def test_drain_is_said_once():
    peer = H2Peer()
    peer.machine.connection.drain()
    assert peer.machine.connection.take()
    peer.machine.connection.drain()
    assert peer.machine.connection.take() == b""


def test_abort_ends_what_is_open():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.machine.connection.abort("the server is shutting down")
    peer.exchange()
    assert peer.response(stream).status == 14
    assert peer.has(ConnectionTerminated)[0].error_code == 0
    assert peer.machine.connection.finished
    assert peer.machine.feed(b"anything") == b""


def test_a_peer_that_leaves_is_let_go_when_its_calls_are_done():
    peer = H2Peer()
    stream = peer.request("/test.Test/Echo", b"x")
    peer.machine.feed(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))
    assert not peer.machine.connection.finished
    peer.client.end_stream(stream)
    peer.exchange()
    assert peer.machine.connection.finished
