"""A backend that responds with given bytes."""

import http.server
import threading
from dataclasses import dataclass
from pathlib import Path

from extproc.demo.stack.process import Child
from extproc.demo.stack.stack import Backend

from ..patience import PATIENCE_S


@dataclass(frozen=True)
class Received:
    """A request that a backend received."""

    path: str
    headers: dict[str, str]
    body: bytes


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """With the default of 5, connections are dropped if the machine is busy."""


class ScriptedBackend:
    """A backend that responds with given bytes, over its own socket.

    ``reply`` is a whole HTTP response as a list of pieces, which the backend writes one
    by one after a request. If an event is between two pieces, the backend waits for it.
    """

    def __init__(self) -> None:
        self.reset()
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.wfile.write(http_response(200, b""))

            do_DELETE = do_GET  # noqa: N815 - as http.server calls it

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.received.append(
                    Received(self.path, headers, self._body(headers))
                )
                for piece in script.reply:
                    if isinstance(piece, threading.Event):
                        piece.wait(PATIENCE_S)
                        continue
                    self.wfile.write(piece)
                    self.wfile.flush()
                self.close_connection = True

            def _body(self, headers: dict[str, str]) -> bytes:
                if headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(headers.get("content-length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return body

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def reset(self) -> None:
        """Respond with status 200 from now on, and forget the received requests."""
        self.reply: list[bytes | threading.Event] = [http_response(200, b"{}")]
        self.received: list[Received] = []

    def as_backend(self, pool: str) -> Backend:
        """Return this server as a backend of the stack, without a process to wait for."""
        return Backend(pool, 8192, self.port, Child("scripted", [], Path()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def http_response(
    status: int, body: bytes, content_type: str = "application/json"
) -> bytes:
    """Return a whole HTTP/1.1 response."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body
