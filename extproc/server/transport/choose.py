"""Builds the transport that the configuration selects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from extproc.address import Address
from extproc.config import ServerConfig
from extproc.config import Transport as TransportName
from extproc.rpc.call import Service
from extproc.rpc.limits import Limits
from extproc.server.transport.grpcio import GrpcioServer
from extproc.server.transport.listener import Monitor, connection_limit
from extproc.server.transport.native import NativeServer, new_event_loop
from extproc.server.transport.tls import Certificates, LiveContext, grpc_credentials

_ENVOY_BYTES = 32 << 20
"""Maximum number of request bytes that Envoy buffers with the shipped configuration
(`request_body_buffer_limit`). A body of undeclared length may reach this maximum. Parts
of responses are smaller: Envoy's default HTTP/2 window is 16 MiB, and a response of 8
MB came in parts above 4 MiB."""

_ENVELOPE_BYTES = 64 * 1024
"""Allowance in bytes for the rest of a message, with headers, attributes and
metadata."""


class Transport(Protocol):
    """A gRPC server on one address."""

    @property
    def port(self) -> int:
        """The bound port; 0 for a Unix socket."""

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            OSError: the address cannot be bound.
        """

    async def drain(self, timeout_s: float, /) -> None:
        """Refuse new streams, wait for open streams until the timeout, then stop."""


def limits_of(server: ServerConfig) -> Limits:
    """Return the limits on one connection.

    The largest message has a body, or a part of a response. Of incomplete messages, a
    connection may hold as many bytes as two of these.
    """
    message_bytes = max(_ENVOY_BYTES, server.max_body_bytes) + _ENVELOPE_BYTES
    return Limits(max_message_bytes=message_bytes, max_buffered_bytes=2 * message_bytes)


def build_transport(
    server: ServerConfig,
    service: Service,
    listen: Address,
    monitor: Monitor | None = None,
) -> Transport:
    """Build the configured transport, with TLS if configured.

    Args:
        server: selects the transport, its limits and its certificates.
        service: application to serve.
        listen: address to listen on, which is ``server.listen`` or the address of one
            of several workers.
        monitor: receives connection events (native transport only).

    Raises:
        ConfigError: a file in ``tls`` is unusable.
    """
    certificates = Certificates(server.tls) if server.tls is not None else None
    limits = limits_of(server)
    match server.transport:
        case TransportName.GRPCIO:
            return GrpcioServer(
                service,
                listen,
                limits=limits,
                credentials=grpc_credentials(certificates) if certificates else None,
            )
        case TransportName.NATIVE:
            return NativeServer(
                service,
                listen,
                limits=limits,
                max_connections=connection_limit(server.max_connections),
                monitor=monitor,
                ssl_context=LiveContext.of(certificates) if certificates else None,
            )


def loop_factory(server: ServerConfig) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the event loop that is best for the transport."""
    if server.transport is TransportName.NATIVE:
        return new_event_loop
    return asyncio.new_event_loop
