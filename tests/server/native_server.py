"""The native transport on a real socket, and helpers that its clients need."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc

from extproc.address import Address
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.native import NativeServer

from ..rpc.peers import TestService

TIMEOUT_S = 20
ANY_PORT = Address.parse("127.0.0.1:0")
INTRODUCTION = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@contextlib.asynccontextmanager
async def serving(
    address: Address = ANY_PORT, **options
) -> AsyncIterator[tuple[NativeServer, TestService, HealthStatuses]]:
    service, health = TestService(), HealthStatuses()
    server = NativeServer(
        WithHealth(service, health), address, linger_s=0.05, **options
    )
    await server.start()
    try:
        yield server, service, health
    finally:
        await server.drain(0)


@contextlib.asynccontextmanager
async def connected(server: NativeServer) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel and close it after the drain, which makes drains fast."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
        await server.drain(0)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def stream(channel: grpc.aio.Channel, method: str, **options):
    return channel.stream_stream(f"/test.Test/{method}")(**options)


def raw_request(method: str, stream_id: int, *more: bytes) -> bytes:
    """Return a HEADERS frame that uses no dynamic table entries.

    ``more`` contains further headers, already encoded.
    """
    path = f"/test.Test/{method}".encode()
    head = b"\x83\x86\x44" + bytes((len(path),)) + path
    head += b"\x5f\x10application/grpc" + b"".join(more)
    return bytes((0, 0, len(head), 1, 4, 0, 0, 0, stream_id)) + head
