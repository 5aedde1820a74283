"""The native server on real sockets, with grpcio and raw sockets as clients."""

import asyncio
import contextlib
import socket

import grpc
import pytest

from extproc.address import Address
from extproc.rpc.limits import Limits
from extproc.server.transport.native import NativeServer

from ...rpc.peers import TestService
from ..native_server import (
    INTRODUCTION,
    TIMEOUT_S,
    connected,
    raw_request,
    serving,
    stream,
    until,
)

# ---- calls -------------------------------------------------------------------------


def test_a_client_that_sends_on_gets_the_answer(run):
    async def test():
        async with (
            serving() as (server, _, _),
            connected(server) as channel,
        ):
            early = stream(channel, "Once", request_iterator=iter([b"q", b"r"]))
            assert [message async for message in early] == [b"q"]
            assert await early.code() is grpc.StatusCode.OK

    run(test())


def test_grpcio_many_calls_on_one_connection(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            once = channel.unary_unary("/test.Test/Once")
            bodies = [b"%d" % n * (n * 40) for n in range(200)]
            assert await asyncio.gather(*map(once, bodies)) == bodies
            assert len(server.peers) == 1
            await until(lambda: not any(p.machine.open_calls for p in server.peers))
            assert [c.closed_with for c in service.calls] == [[False]] * 200

    run(test())


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # grpcio: compression is experimental
def test_compression_is_refused(run):
    async def test():
        async with (
            serving() as (server, _, _),
            connected(server) as channel,
        ):
            once = channel.unary_unary("/test.Test/Once")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await once(b"x" * 100, compression=grpc.Compression.Gzip)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test())


def test_the_server_keeps_the_deadline_itself(run):
    """The client announces a deadline but does not enforce it."""

    async def test():
        async with serving() as (server, service, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            timeout = b"\x00\x0cgrpc-timeout\x0320m"
            writer.write(INTRODUCTION + raw_request("Wait", 1, timeout))
            answer = b""
            while b"grpc-status" not in answer:
                answer += await reader.read(1000)
            assert b"grpc-status\x014" in answer
            assert service.calls[0].closed_with == [True]
            writer.close()

    run(test())


def test_a_lost_connection_closes_its_calls(run):
    async def test():
        async with serving() as (server, service, _):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(INTRODUCTION + raw_request("Wait", 1) + raw_request("Wait", 3))
            await until(lambda: len(service.calls) == 2)
            writer.transport.abort()
            await until(lambda: not server.peers)
            assert [c.closed_with for c in service.calls] == [[True], [True]]

    run(test())


def test_limits_reach_the_wire(run):
    async def test():
        limits = Limits(max_concurrent_streams=7, max_message_bytes=1024)
        async with (
            serving(limits=limits) as (server, _, _),
            connected(server) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary("/test.Test/Once")(b"x" * 1025)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "limit of 1024" in str(raised.value.details())

    run(test())


# ---- addresses ---------------------------------------------------------------------


def test_a_unix_socket_is_served_and_removed(run, tmp_path):
    path = tmp_path / "router.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def test():
        async with serving(Address(path=str(path))) as (server, _, _):
            assert server.port == 0
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                assert await channel.unary_unary("/test.Test/Once")(b"x") == b"x"
        assert not path.exists()

    run(test())


def test_a_unix_socket_of_a_successor_stays(run, tmp_path):
    path = tmp_path / "router.sock"

    async def test():
        async with serving(Address(path=str(path))):
            path.unlink()
            successor = NativeServer(TestService(), Address(path=str(path)))
            await successor.start()
        assert path.exists()
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert await channel.unary_unary("/test.Test/Once")(b"x") == b"x"
        await successor.drain(0)
        assert not path.exists()

    run(test())


# ---- drain -------------------------------------------------------------------------


def test_drain_waits_for_calls_on_a_server_that_was_without_any(run):
    async def test():
        async with serving() as (server, _, _):
            address = f"127.0.0.1:{server.port}"
            async with grpc.aio.insecure_channel(address) as channel:
                await channel.unary_unary("/test.Test/Once")(b"x")
            await until(lambda: not server.peers)
            channel = grpc.aio.insecure_channel(address)
            call = stream(channel, "Echo")
            await call.write(b"x")
            assert await call.read() == b"x"
            drained = asyncio.ensure_future(server.drain(TIMEOUT_S))
            await call.write(b"while draining")
            assert await call.read() == b"while draining"
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            await drained
            await channel.close()

    run(test())


def test_the_system_looks_after_peers_that_vanish(run):
    async def test():
        async with serving() as (server, _, _):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: len(server.peers) == 1)
            (peer,) = server.peers
            assert peer._transport is not None
            sock = peer._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            writer.close()

    run(test())


def test_drain_says_why_it_ends_calls(run):
    async def test():
        async with (
            serving() as (server, service, _),
            connected(server) as channel,
        ):
            call = stream(channel, "Wait")
            await call.write(b"x")
            await until(lambda: bool(service.calls and service.calls[0].received))
            await server.drain(0.01)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert await call.details() == "the server is shutting down"
            assert service.calls[0].closed_with == [True]
            assert not server.peers

    run(test())


def test_drain_cuts_off_a_client_that_does_not_answer(run):
    async def test():
        async with serving() as (server, _, _):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: len(server.peers) == 1)
            await server.drain(0.01)
            assert not server.peers
            writer.close()

    run(test())


def test_connections_over_the_limit_are_closed(run):
    async def test():
        async with serving(max_connections=1) as (server, _, _):
            reader, first = await asyncio.open_connection("127.0.0.1", server.port)
            await reader.readexactly(9)
            reader, second = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert len(server.peers) == 1
            first.close()
            second.close()

    run(test())
