"""The native transport: :mod:`extproc.rpc.connection` on asyncio sockets.

    server = NativeServer(service, Address.parse("0.0.0.0:9002"))
    await server.start()
    ...
    await server.drain(seconds=10)

The server runs on any event loop, and takes about half the CPU time on uvloop
(:func:`new_event_loop`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from extproc.address import Address
from extproc.rpc.call import Service
from extproc.rpc.connection import Connection
from extproc.rpc.limits import Held, Limits
from extproc.server.logs import WIRE, log_failure
from extproc.server.transport.listener import Listener, Monitor, NoMonitor

logger = logging.getLogger(__name__)
wire_logger = logging.getLogger(WIRE)

_READ_BYTES: Final = 256 * 1024
TURN_S: Final = 0.002
"""Seconds of work for one connection before other connections get their turn."""
INTRODUCTION_S: Final = 10.0
"""Seconds within which a peer must send its preface and SETTINGS."""
IDLE_S: Final = 600.0
"""Seconds without a stream after which a connection is closed. The peer reconnects when
needed, whereas a thousand idle connections would keep other peers out."""
STALL_S: Final = 30.0
"""Seconds after which a peer that does not read its replies is disconnected."""
LINGER_S: Final = 1.0
"""Seconds to wait for the peer to close the connection first. If this side closed it
with unread input, the connection would be reset, and a gRPC client might report a
socket error instead of the status that it has just received."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Create uvloop's event loop if it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


class NativeServer:
    """Serves calls over HTTP/2 on one address.

    Args:
        service: application to serve.
        address: address to listen on; port 0 means any free port.
        limits: limits on one connection.
        ssl_context: TLS context; ALPN is set to ``h2`` and clients must negotiate it.
        max_connections: maximum number of connections, including connections in the TLS
            handshake; any further connection is closed at once.
        monitor: receives connection events and errors.
        linger_s: seconds within which a peer has to close its connection after GOAWAY.
    """

    def __init__(
        self,
        service: Service,
        address: Address,
        *,
        limits: Limits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 1024,
        monitor: Monitor | None = None,
        linger_s: float = LINGER_S,
    ) -> None:
        self.service: Final = service
        self.limits: Final = limits or Limits()
        self.max_connections: Final = max_connections
        self.monitor: Final[Monitor] = monitor or NoMonitor()
        self.linger_s: Final = linger_s
        self.held: Final = Held()
        self.buffer: Final = memoryview(bytearray(_READ_BYTES))
        """Read buffer that all connections share. This is possible because the loop
        fills it and passes it on in one step, and connections keep no view of it."""
        self.peers: Final[set[_Peer]] = set()
        self._ssl = ssl_context
        self._idle = asyncio.Event()
        self._listener = Listener(
            address, self._new_peer, ssl_context, self.max_connections, self.monitor
        )

    async def start(self) -> None:
        """Bind the address and start accepting.

        Raises:
            OSError: the address cannot be bound.
        """
        if self._ssl is not None:
            self._ssl.set_alpn_protocols(["h2"])
        await self._listener.start()

    def _new_peer(self) -> _Peer:
        return _Peer(self, asyncio.get_running_loop())

    @property
    def port(self) -> int:
        """The bound port; 0 for a Unix socket."""
        return self._listener.port

    async def drain(self, seconds: float) -> None:
        """Stop accepting connections, wait for open calls, then end remaining calls.

        Args:
            seconds: seconds after which open calls end with UNAVAILABLE.
        """
        self._listener.close()
        for peer in tuple(self.peers):
            peer.drain()
        await self._wait_idle(seconds)
        for peer in tuple(self.peers):
            peer.stop()
        await self._wait_idle(self.linger_s)
        for peer in tuple(self.peers):
            peer.cut_off()
        await self._wait_idle(self.linger_s)

    def made(self, peer: _Peer) -> None:
        """Record that a connection is complete."""
        self._listener.made(peer)

    def left(self, peer: _Peer) -> None:
        """Record that a connection is gone."""
        self._listener.left(peer)
        self.peers.discard(peer)
        if not self.peers:
            self._idle.set()

    async def _wait_idle(self, seconds: float) -> None:
        if self.peers:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)


class _Peer(asyncio.BufferedProtocol):
    """One connection's socket."""

    def __init__(self, server: NativeServer, loop: asyncio.AbstractEventLoop) -> None:
        self.machine = Connection(
            server.service,
            server.limits,
            log_failure,
            self._flush,
            self._log_frame if wire_logger.isEnabledFor(logging.DEBUG) else None,
            server.held,
        )
        self._server = server
        self._loop = loop
        self._buffer = server.buffer
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Timer for the only event that the connection waits for: that the peer
        introduces itself, reads or closes."""
        self._deadline: asyncio.TimerHandle | None = None
        self._closing = False
        self._opened = 0
        self._let_go = False
        self._turn_ends_s = 0.0
        # Reasons why reading is paused: the peer does not read replies, or other
        # connections get their turn.
        self._stalled = False
        self._waiting_for_turn = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        self._server.made(self)
        session = transport.get_extra_info("ssl_object")
        if session is not None and session.selected_alpn_protocol() != "h2":
            self._server.monitor.handshake_failed("ALPN is not h2")
            transport.abort()
            return
        self._server.peers.add(self)
        self._wait(INTRODUCTION_S, self._check_introduced)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        self._advance(self._buffer[:nbytes])
        if nbytes == len(self._buffer) or self.machine.behind:
            self._yield_turn()

    def _advance(self, data: bytes | memoryview) -> None:
        self._turn_ends_s = time.monotonic() + TURN_S
        self.machine.receive(data, self._loop.time(), self._has_time)
        self._flush()
        self._watch_deadline()

    def _has_time(self) -> bool:
        return time.monotonic() < self._turn_ends_s

    def _yield_turn(self) -> None:
        """Stop reading until the event loop has polled all other connections.

        Otherwise uvloop reads 32 times in a row from a socket that is never empty.
        """
        if not self._waiting_for_turn and self._transport is not None:
            self._waiting_for_turn = True
            self._transport.pause_reading()
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._waiting_for_turn = False
        if self._transport is None or self._closing or self._stalled:
            return
        if self.machine.behind:
            self._advance(b"")
        if self.machine.behind:
            self._yield_turn()
        elif self._transport is not None and not self._stalled:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """Stop reading requests, because the peer does not read replies."""
        if self._transport is not None and not self._closing:
            self._stalled = True
            self._transport.pause_reading()
            self._wait(STALL_S, self.cut_off)

    def resume_writing(self) -> None:
        if self._transport is not None and not self._closing:
            self._stalled = False
            self._wait(INTRODUCTION_S, self._check_introduced)
            if not self._waiting_for_turn:
                self._take_turn()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for timer in (self._timer, self._deadline):
            if timer is not None:
                timer.cancel()
        self.machine.lost()
        self._server.left(self)

    def drain(self) -> None:
        """Ask the peer to close the connection; open calls continue."""
        self.machine.drain()
        self._flush()

    def stop(self) -> None:
        """End open calls, then the connection."""
        self.machine.abort("the server is shutting down")
        self._flush()

    def cut_off(self) -> None:
        """Close the connection without sending anything."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or self._closing:
            return
        data = self.machine.take()
        if data:
            transport.write(data)
        if self.machine.finished:
            self._shut(transport)

    def _shut(self, transport: asyncio.Transport) -> None:
        """Close after the peer has closed or after a short wait; all output is sent."""
        self._closing = True
        fault = self.machine.fault
        if fault is not None:
            self._server.monitor.faulted(fault.code.name.lower(), fault.reason)
        self._wait(self._server.linger_s, self._close)

    def _close(self) -> None:
        """Close once the output is sent; cut off a peer that does not read in time."""
        if self._transport is not None:
            self._transport.close()
            self._wait(STALL_S, self.cut_off)

    def _log_frame(self, line: str) -> None:
        transport = self._transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        wire_logger.debug("frame", extra={"fields": {"peer": peer, "wire": line}})

    def _wait(self, seconds: float, then: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _check_introduced(self) -> None:
        if not self.machine.ready:
            self.cut_off()
        else:
            self._wait(IDLE_S, self._check_idle)

    def _check_idle(self) -> None:
        """Drain the connection if it has had no stream since the last check."""
        opened, self._opened = self._opened, self.machine.opened
        if opened == self._opened and not self.machine.open_calls:
            if self._let_go:
                self.stop()  # the peer has not closed it since the drain
            else:
                self._let_go = True
                self.drain()
        if not self._closing:
            self._wait(IDLE_S, self._check_idle)

    def _watch_deadline(self) -> None:
        """Set a timer for the next deadline; earlier timers may still fire."""
        when = self.machine.next_deadline
        if when is None:
            return
        if self._deadline is not None:
            if self._deadline.when() <= when:
                return
            self._deadline.cancel()
        self._deadline = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        self.machine.expire(self._loop.time())
        self._flush()
        self._watch_deadline()
