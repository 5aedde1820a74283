"""A backend whose stream consists of two separate chunks."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator


@contextlib.contextmanager
def two_chunk_server() -> Iterator[int]:
    """Run the backend; yield its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _TwoChunks)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _TwoChunks(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"9\r\ndata: a\n\n\r\n")
        time.sleep(0.3)  # otherwise both would be one chunk
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        pass
