"""An ext_proc server that stops (SIGSTOP) while it processes a response chunk.

Run this file as a program with the port to listen on. The server replies to the first
chunk only after it has received the second chunk, and stops before it replies to the
second. With this order of messages, Envoy's message timeout does not run.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from extproc.address import Address
from extproc.rpc.call import Call, Replies, Send
from extproc.server.services.ext_proc import PROCESS
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.grpcio import GrpcioServer
from extproc.wire import ext_proc_pb2 as pb


class Freezing:
    """One ext_proc stream."""

    def __init__(self) -> None:
        self._chunks = 0

    def receive(self, message: bytes) -> Replies:
        request = pb.ProcessingRequest.FromString(message)
        reply = pb.ProcessingResponse()
        match request.WhichOneof("request"):
            case "request_headers":
                reply.request_headers.SetInParent()
                reply.mode_override.response_header_mode = pb.ProcessingMode.SEND
                reply.mode_override.response_body_mode = pb.ProcessingMode.STREAMED
            case "response_headers":
                reply.response_headers.SetInParent()
            case "response_body":
                self._chunks += 1
                if self._chunks == 1:
                    return (), False
                reply.response_body.SetInParent()
                loop = asyncio.get_running_loop()
                loop.call_later(0.1, os.kill, os.getpid(), signal.SIGSTOP)
        return (reply.SerializeToString(),), False

    def half_closed(self) -> Replies:
        return (), True

    def closed(self, cancelled: bool) -> None:
        pass


class Service:
    def open(self, path: str, headers: Any, send: Send) -> Call | None:
        return Freezing() if path == PROCESS else None


async def serve(port: int) -> None:
    health = HealthStatuses()
    server = GrpcioServer(WithHealth(Service(), health), Address("127.0.0.1", port))
    await server.start()
    health.set_all(True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
