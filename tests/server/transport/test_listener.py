"""The server counts and limits accepted connections; TLS handshakes can time out."""

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import pytest

from extproc.address import Address
from extproc.server.transport import listener
from extproc.server.transport.listener import SPARE_DESCRIPTORS, connection_limit
from extproc.server.transport.native import NativeServer

from ..native_server import serving, until

Run = Callable[[Coroutine[Any, Any, None]], None]


class Counts:
    """A monitor that records its events."""

    def __init__(self) -> None:
        self.open = 0
        self.refusals: list[str] = []
        self.handshakes: list[str] = []
        self.faults: list[str] = []

    def opened(self) -> None:
        self.open += 1

    def closed(self) -> None:
        self.open -= 1

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def handshake_failed(self, reason: str) -> None:
        self.handshakes.append(reason)

    def faulted(self, code: str, reason: str) -> None:
        self.faults.append(code)


async def connect(server: NativeServer) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    return writer


def test_connections_are_counted_from_accept_on(
    run: Run, server_tls: ssl.SSLContext
) -> None:
    """Connections are counted before the TLS handshake."""

    async def test() -> None:
        counts = Counts()
        options = {"max_connections": 3, "monitor": counts, "ssl_context": server_tls}
        async with serving(**options) as (server, _, _):
            silent = [await connect(server) for _ in range(3)]
            await until(lambda: counts.open == 3)
            reader, late = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert counts.refusals == ["limit"]
            silent[0].write(b"this is no TLS")
            await until(lambda: counts.open == 2)
            assert len(counts.handshakes) == 1
            for each in (*silent, late):
                each.close()
            await until(lambda: counts.open == 0)

    run(test())


def test_a_handshake_takes_its_time_or_ends(
    run: Run, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.05)

    async def test() -> None:
        counts = Counts()
        async with serving(monitor=counts, ssl_context=server_tls) as (server, _, _):
            silent = await connect(server)
            await until(lambda: bool(counts.handshakes))
            await until(lambda: counts.open == 0)
            silent.close()

    run(test())


def test_a_drain_ends_handshakes(run: Run, server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        counts = Counts()
        async with serving(monitor=counts, ssl_context=server_tls) as (server, _, _):
            silent = await connect(server)
            await until(lambda: counts.open == 1)
            await server.drain(0)
            await until(lambda: counts.open == 0)
            silent.close()

    run(test())


def test_a_drain_ends_a_connection_that_was_just_accepted(run: Run) -> None:
    async def test() -> None:
        counts = Counts()
        async with serving(monitor=counts) as (server, _, _):
            with socket.create_connection(("127.0.0.1", server.port)) as late:
                (listening,) = server._listener._sockets
                server._listener._accept(listening)
                assert counts.open == 1
                server._listener.close()
                await until(lambda: counts.open == 0)
                late.setblocking(False)
                with contextlib.suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_recv(late, 1)

    run(test())


def test_without_descriptors_it_waits_and_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_PAUSE_S", 0.01)

    async def test() -> None:
        counts = Counts()
        async with serving(monitor=counts) as (server, _, _):
            (listening,) = server._listener._sockets
            accept = mock.Mock(
                side_effect=[OSError(errno.EMFILE, "no descriptors"), BlockingIOError]
            )
            none_left = mock.Mock(wraps=listening, accept=accept)
            server._listener._sockets.append(none_left)
            server._listener._accept(none_left)
            server._listener._sockets.remove(none_left)
            asyncio.get_running_loop().call_later(
                0.01, server._listener._resume, listening
            )
            assert counts.refusals == ["no descriptors"]
            writer = await connect(server)
            await until(lambda: counts.open == 1)
            writer.close()

    run(test())


def test_the_limit_of_descriptors_bounds_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert connection_limit(100) == 100
        assert connection_limit(1000) == min(1000, hard - SPARE_DESCRIPTORS)
        with mock.patch.object(resource, "setrlimit", side_effect=ValueError):
            soft_now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            assert connection_limit(1 << 20) == soft_now - SPARE_DESCRIPTORS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_unix_socket_in_use_is_replaced_and_a_file_is_not(
    run: Run, tmp_path: Any
) -> None:

    (tmp_path / "file").write_text("precious")

    async def test() -> None:
        with pytest.raises(OSError, match="cannot listen"):
            async with serving(Address(path=str(tmp_path / "file"))):
                pass
        assert (tmp_path / "file").read_text() == "precious"

    run(test())


def test_a_name_that_does_not_resolve_is_an_error(run: Run) -> None:

    async def test() -> None:
        with (
            mock.patch.object(
                socket, "getaddrinfo", side_effect=socket.gaierror(-2, "unknown")
            ),
            pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:1"),
        ):
            async with serving(Address("nowhere.invalid", 1)):
                pass

    run(test())
