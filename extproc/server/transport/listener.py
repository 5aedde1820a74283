"""Accepts connections, counts them from the start and limits their number.

asyncio's servers report a connection only after its TLS handshake. With such a server,
a handshake in progress could not be counted, and the cause of a failed handshake could
not be logged.
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
"""Seconds after which an incomplete TLS handshake ends its connection."""
SPARE_DESCRIPTORS: Final = 64
"""Number of file descriptors reserved for the admin port, files and the endpoints."""
_BACKLOG: Final = 1024
_ACCEPTS_A_TURN: Final = 64
_PAUSE_S: Final = 1.0
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}
"""TCP keepalive options, which detect vanished peers within two minutes."""


class Monitor(Protocol):
    """Receives connection events; the metrics implement it."""

    def opened(self) -> None:
        """Count an accepted connection."""

    def closed(self) -> None:
        """Count the end of a connection."""

    def refused(self, reason: str) -> None:
        """Count a connection that was closed as soon as it was accepted."""

    def handshake_failed(self, reason: str) -> None:
        """Count a TLS handshake that failed or did not negotiate HTTP/2."""

    def faulted(self, code: str, reason: str) -> None:
        """Count a connection ended by an HTTP/2 protocol error of the peer."""


class NoMonitor:
    """A monitor that ignores all events."""

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
    """Listens on one address and creates a protocol for each connection.

    Args:
        address: address to listen on; port 0 means any free port.
        make_protocol: creates the protocol of a connection, which must call
            :meth:`made` when it is connected and :meth:`left` when the connection is
            lost.
        ssl_context: TLS context; None for plain text.
        max_connections: maximum number of connections; any further connection is closed
            at once.
        monitor: receives connection events.
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
        # Includes connections in the TLS handshake.
        self._accepted: set[asyncio.BaseProtocol] = set()
        self._beginning: dict[asyncio.BaseProtocol, asyncio.Task[None]] = {}
        self._socket_file: tuple[str, int] | None = None

    @property
    def port(self) -> int:
        """The bound port; 0 for a Unix socket or before the start."""
        if self._address.is_unix or not self._sockets:
            return 0
        return int(self._sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Bind the address and start accepting.

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
            number = error.errno or 0  # getaddrinfo's numbers are negative
            reason = os.strerror(number) if number > 0 else str(error)
            raise OSError(f"cannot listen on {self._address}: {reason}") from error
        for each in self._sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
            loop.add_reader(each, self._accept, each)

    def close(self) -> None:
        """Stop accepting; open connections stay open."""
        for each in self._sockets:
            with contextlib.suppress(RuntimeError):  # the loop never ran
                asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets.clear()
        self._remove_socket_file()
        for task in self._beginning.values():
            task.cancel()

    def made(self, protocol: asyncio.BaseProtocol) -> None:
        """Record that a connection and its handshake are complete."""
        self._beginning.pop(protocol, None)

    def left(self, protocol: asyncio.BaseProtocol) -> None:
        """Record that a connection is gone."""
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
            if stat.S_ISSOCK(os.stat(path).st_mode):  # left behind by a dead process
                os.unlink(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets.append(bound)
        bound.bind(path)
        self._socket_file = (path, os.stat(path).st_ino)

    def _remove_socket_file(self) -> None:
        """Remove the socket file unless another server has replaced it."""
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
        """Stop accepting for a second, since immediate retries would fail too."""
        loop = asyncio.get_running_loop()
        self._monitor.refused(error.strerror or "no file descriptors left")
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

        def done(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # possibly before its first step, which closes nothing
                self._give_up(connection, protocol)

        task.add_done_callback(done)

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
        except OSError as error:  # includes SSL errors and timeouts
            self._monitor.handshake_failed(_reason(error))
            self._give_up(connection, protocol)

    def _give_up(
        self, connection: socket.socket, protocol: asyncio.BaseProtocol
    ) -> None:
        self.made(protocol)
        connection.close()
        self.left(protocol)


def connection_limit(wanted: int) -> int:
    """Return the maximum number of connections that the file descriptors permit.

    Raises the soft limit of file descriptors as far as the system permits.
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
    """Return the library's reason for a failed handshake, without the peer's bytes."""
    if isinstance(error, TimeoutError):
        return "handshake timed out"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    return error.strerror or "connection lost"
