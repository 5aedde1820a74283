"""Requests without a body length: chunked over HTTP/1.1, or over HTTP/2."""

import http.client
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence

import h2.config
import h2.connection
import h2.events
import pytest

from ..patience import PATIENCE_S
from .outside import Client, Response

PATH = "/v1/chat/completions"
Between = Callable[[], None]
NO_HEADERS: Mapping[str, str] = {}


def send_chunked(
    client: Client, pieces: Sequence[bytes], between: Between = lambda: None
) -> Response:
    """Send a body in chunks, and call ``between`` before each chunk."""
    request_id = str(uuid.uuid4())
    connection = http.client.HTTPConnection(
        "127.0.0.1", client.envoy.port, timeout=PATIENCE_S
    )
    connection.putrequest("POST", PATH)
    for name, value in _headers(request_id).items():
        connection.putheader(name, value)
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    try:
        for piece in pieces:
            between()
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        between()
        connection.send(b"0\r\n\r\n")
    except OSError:
        pass  # rejected before the body's end, for the reason in the response
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    content = response.read()
    connection.close()
    return Response(response.status, headers, content, request_id)


def send_http2(
    client: Client,
    pieces: Sequence[bytes],
    between: Between = lambda: None,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """Send a body over HTTP/2, without a content-length unless ``headers`` has one."""
    peer = _Http2(client.envoy.port)
    try:
        return peer.send(pieces, between, headers)
    finally:
        peer.close()


class _Http2:
    """One request on its own HTTP/2 connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = b""
        self._ended = False

    def send(
        self, pieces: Sequence[bytes], between: Between, headers: Mapping[str, str]
    ) -> Response:
        request_id = str(uuid.uuid4())
        head = {
            ":method": "POST",
            ":path": PATH,
            ":scheme": "http",
            ":authority": "x",
        }
        self._h2.send_headers(1, [*{**head, **_headers(request_id), **headers}.items()])
        self._flush()
        for piece in pieces:
            between()
            self._send_data(piece)
        between()
        if not self._ended:
            self._h2.end_stream(1)
            self._flush()
        while not self._ended:
            self._receive()
        return Response(self._status, self._headers, self._body, request_id)

    def close(self) -> None:
        self._socket.close()

    def _send_data(self, data: bytes) -> None:
        while data and not self._ended:
            room = min(
                self._h2.local_flow_control_window(1),
                self._h2.max_outbound_frame_size,
            )
            if not room:
                self._receive()
                continue
            self._h2.send_data(1, data[:room])
            self._flush()
            data = data[room:]

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        assert data, "Envoy closed the connection"
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._headers = {str(k): str(v) for k, v in event.headers}
                self._status = int(self._headers[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self._body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._ended = True
        self._flush()


def _headers(request_id: str) -> dict[str, str]:
    return {
        "host": "x",
        "content-type": "application/json",
        "x-request-id": request_id,
    }


def _whole(client: Client, body: bytes) -> Response:
    return client.post(PATH, body)


def _chunked(client: Client, body: bytes) -> Response:
    return send_chunked(client, [body[:20], body[20:]])


def _http2(client: Client, body: bytes) -> Response:
    return send_http2(client, [body[:20], body[20:]])


SENDERS = [
    pytest.param(_whole, id="whole"),
    pytest.param(_chunked, id="chunked"),
    pytest.param(_http2, id="http2"),
]
"""A body with a length, in chunks, and over HTTP/2 without a length."""
