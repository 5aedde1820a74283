"""The grpc.aio transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.server.service import METHOD, SERVICE, ExtProcService

HEALTH_SERVICES = ("", "liveness", "readiness", SERVICE)
"""The names that gateways ask for; those of llm-d and the Gateway API's pickers."""

_RESPONSE_CHUNK_BYTES = 4 << 20
"""gRPC's own default limit; Envoy's streamed response chunks are at most 1 MiB."""


class GrpcioServer:
    """Serves an ``ExtProcService`` and gRPC health on one address.

    Args:
        service: answers the streams.
        address: HOST:PORT or unix:PATH.
        max_body_bytes: the largest request body that is asked for.
    """

    def __init__(
        self, service: ExtProcService, address: str, max_body_bytes: int
    ) -> None:
        self._service = service
        self._address = address
        self._health = health.aio.HealthServicer()
        limit = max(_RESPONSE_CHUNK_BYTES, max_body_bytes + 64 * 1024)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                # Envoy's keepalive pings an idle connection; gRPC would close it.
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        process: Any = grpc.stream_stream_rpc_method_handler(self._process)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: process}),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> int:
        """Listen and serve; return the port (0 for a Unix socket).

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}") from error
        await self._server.start()
        await self._set_health(HEALTH_SERVICES, health_pb2.HealthCheckResponse.SERVING)
        return 0 if self._address.startswith("unix:") else port

    async def drain(self, timeout_s: float) -> None:
        """Say NOT_SERVING (but alive), refuse new streams, let open ones finish."""
        await self._set_health(
            [name for name in HEALTH_SERVICES if name != "liveness"],
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        await self._server.stop(timeout_s)

    async def _set_health(self, names: Any, status: Any) -> None:
        for name in names:
            await self._health.set(name, status)

    async def _process(
        self, messages: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        # With no (de)serializer in the handler, messages are bytes both ways.
        stream = self._service.open()
        try:
            async for message in messages:
                replies, end = stream.receive(message)
                for reply in replies:
                    yield reply
                if end:
                    return
        finally:  # a client that goes away cancels the handler
            stream.closed()
