"""Accepting connections: counted from the first moment, and never more than allowed.

asyncio's servers show a connection only after its TLS handshake: until then it could
not be counted, nor could it be seen why it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from typing import Final, Protocol

from extproc.address import Address

HANDSHAKE_S: Final = 10.0
"""A TLS handshake that is not complete by then ends its connection."""
SPARE_DESCRIPTORS: Final = 64
"""Kept back from connections: the admin port, files, the pools' endpoints."""
_BACKLOG: Final = 1024
_ACCEPTS_A_TURN: Final = 64
_PAUSE_S: Final = 1.0
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}
"""Finds peers that vanished without a word, in two minutes."""


class Monitor(Protocol):
    """Takes note of connections; the metrics are one."""

    def opened(self) -> None:
        """Count a connection that has been accepted."""

    def closed(self) -> None:
        """Count the end of one."""

    def refused(self, reason: str) -> None:
        """Count a connection that was closed as soon as it was accepted."""

    def handshake_failed(self, reason: str) -> None:
        """Count a connection whose TLS handshake failed, or was not for HTTP/2."""

    def faulted(self, code: str, reason: str) -> None:
        """Count a connection that ended because the peer broke HTTP/2's rules."""


class NoMonitor:
    """Takes note of nothing."""

    def opened(self) -> None:
        pass

    def closed(self) -> None:
        pass

    def refused(self, reason: str) -> None:
        pass

    def handshake_failed(self, reason: str) -> None:
        pass

    def faulted(self, code: str, reason: str) -> None:
        pass


class Listener:
    """Listens on one address, and makes a protocol for each connection.

    Args:
        address: where; port 0 is any free one.
        make_protocol: makes the protocol of a connection; call :meth:`made` with it
            when the connection is made, and :meth:`left` when it is lost.
        ssl_context: for TLS.
        max_connections: those beyond it are closed at once.
        monitor: takes note of connections.
    """

    def __init__(
        self,
        address: Address,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        ssl_context: ssl.SSLContext | None,
        max_connections: int,
        monitor: Monitor,
    ) -> None:
        self._address = address
        self._make_protocol = make_protocol
        self._ssl = ssl_context
        self._max_connections = max_connections
        self._monitor = monitor
        self._sockets: list[socket.socket] = []
        self._accepted: set[asyncio.BaseProtocol] = set()
        self._beginning: dict[asyncio.BaseProtocol, asyncio.Task[None]] = {}
        self._socket_file: tuple[str, int] | None = None

    @property
    def connections(self) -> int:
        """Connections that are open, in their TLS handshake too."""
        return len(self._accepted)

    @property
    def port(self) -> int:
        """The port that is bound; 0 for a Unix socket, or before the start."""
        if self._address.is_unix or not self._sockets:
            return 0
        return int(self._sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Bind and accept.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        try:
            if self._address.is_unix:
                self._bind_unix(self._address.path)
            else:
                await self._bind_tcp(loop)
        except OSError as error:
            self.close()
            number = error.errno or 0  # negative: of getaddrinfo
            reason = os.strerror(number) if number > 0 else str(error)
            raise OSError(f"cannot listen on {self._address}: {reason}") from error
        for each in self._sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
            loop.add_reader(each, self._accept, each)

    def close(self) -> None:
        """Accept no more; connections that are open stay so."""
        for each in self._sockets:
            with contextlib.suppress(RuntimeError):  # there was no loop yet
                asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets.clear()
        self._remove_socket_file()
        for task in self._beginning.values():
            task.cancel()

    def made(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that a connection, with its handshake, has been made."""
        self._beginning.pop(protocol, None)

    def left(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that a connection is gone."""
        if protocol in self._accepted:
            self._accepted.discard(protocol)
            self._monitor.closed()

    async def _bind_tcp(self, loop: asyncio.AbstractEventLoop) -> None:
        address = self._address
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, name in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            self._sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(name)

    def _bind_unix(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):  # left by a process that died
                os.unlink(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets.append(bound)
        bound.bind(path)
        self._socket_file = (path, os.stat(path).st_ino)

    def _remove_socket_file(self) -> None:
        """Remove the socket's file, unless another server has put its own there."""
        if self._socket_file is None:
            return
        path, inode = self._socket_file
        self._socket_file = None
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            if stat.S_ISSOCK(found.st_mode) and found.st_ino == inode:
                os.unlink(path)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._pause(listening, error)
                return
            if len(self._accepted) >= self._max_connections:
                connection.close()
                self._monitor.refused("limit")
            else:
                self._begin(connection)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accept nothing for a second: each try would fail, and be repeated at once."""
        loop = asyncio.get_running_loop()
        self._monitor.refused(error.strerror or "no descriptors")
        loop.remove_reader(listening)
        loop.call_later(_PAUSE_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            loop = asyncio.get_running_loop()
            loop.add_reader(listening, self._accept, listening)

    def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            _set_options(connection)
        protocol = self._make_protocol()
        self._accepted.add(protocol)
        self._monitor.opened()
        task = asyncio.ensure_future(self._connect(connection, protocol))
        self._beginning[protocol] = task

    async def _connect(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._ssl,
                ssl_handshake_timeout=HANDSHAKE_S if self._ssl is not None else None,
            )
        except OSError as error:  # of SSL and time-outs too
            self._monitor.handshake_failed(_reason(error))
            self._give_up(connection, protocol)
        except asyncio.CancelledError:
            self._give_up(connection, protocol)
            raise

    def _give_up(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol
    ) -> None:
        self.made(protocol)
        connection.close()
        self.left(protocol)


def connection_limit(wanted: int) -> int:
    """Return how many connections the process may have: descriptors bound them.

    Raises the soft limit of descriptors as far as the system lets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - SPARE_DESCRIPTORS))


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(error: OSError) -> str:
    """Why a handshake failed, in the library's words; of the peer's bytes nothing."""
    if isinstance(error, TimeoutError):
        return "no complete handshake in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    return error.strerror or "the connection broke"
