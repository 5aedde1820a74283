"""Servers for comparison, and backends for the benchmarks' Envoy.

    python tests/benchmarks/rig_peers.py --serve-lean PORT
    python tests/benchmarks/rig_peers.py --serve-backend PORT

The program runs a gRPC server with an empty handler, or a streaming backend.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any, cast

import grpc
from rig_envoy import BUFFER_BYTES

from extproc.exchange.events import Continue, RequestBody, RequestHeaders
from extproc.server.services.codec import encode
from extproc.server.services.ext_proc import PROCESS
from extproc.server.transport.native import new_event_loop

SSE_EVENTS = 64
SSE_PAUSE_S = 0.001


async def serve_lean(port: int) -> None:
    """Answer each message with an empty reply, to isolate the cost of grpc.aio."""
    replies = (
        *encode(RequestHeaders({}), Continue()),
        *encode(RequestBody(b""), Continue()),
    )

    async def process(_: object, context: Any) -> None:
        for reply in replies:
            if await context.read() is grpc.aio.EOF:
                return
            await context.write(reply)

    service, method = PROCESS[1:].split("/")
    handler = grpc.stream_stream_rpc_method_handler(process)
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", BUFFER_BYTES)]
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def event(data: dict[str, Any]) -> bytes:
    payload = f"data: {json.dumps(data)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(payload), payload)


CHUNK = {"id": "1", "object": "chat.completion.chunk", "model": "m"}
TOKEN = event({**CHUNK, "choices": [{"index": 0, "delta": {"content": "lorem "}}]})
LAST = (
    event(
        {
            **CHUNK,
            "choices": [],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 64},
        }
    )
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Backend(asyncio.Protocol):
    """Stream a response to each request: an event, a pause, and another event."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            head, _, data = data.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            self._missing = int(length[1]) if length else 0
        self._missing -= len(data)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(HEAD)
            self._send(SSE_EVENTS)

    def _send(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if not left:
            self._transport.write(LAST)
            return
        self._transport.write(TOKEN)
        self._loop.call_later(SSE_PAUSE_S, self._send, left - 1)


async def serve_backend(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    what, port = sys.argv[1], int(sys.argv[2])
    if what == "--serve-lean":
        asyncio.run(serve_lean(port))
    else:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve_backend(port))
