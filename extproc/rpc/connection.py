"""The server side of HTTP/2 for gRPC calls, as a machine without I/O.

Bytes go into :meth:`Connection.receive`, gRPC messages to the service's calls, and
the bytes to send come out of :meth:`Connection.take`.  There is no socket, no clock
and no loop here: time is a parameter, and everything that one read of a socket brings
is answered in one piece.

This module takes frames apart.  Streams and calls are in :mod:`extproc.rpc.calls`,
what is sent in :mod:`extproc.rpc.outbound`, what concerns the connection as a whole
in :mod:`extproc.rpc.control`.

:meth:`Connection._consume` is the hot path.  It knows two shapes of frame, a DATA frame
that is exactly one message and a HEADERS frame that is a whole request; every other
frame takes the general path, which would treat those two the same (a test feeds every
byte by itself and compares).

References are to RFC 9113.
"""

from collections.abc import Callable
from typing import Final

from extproc.rpc import frames as f
from extproc.rpc.call import Service
from extproc.rpc.calls import Calls
from extproc.rpc.control import Control
from extproc.rpc.frames import ConnectionFault, ErrorCode
from extproc.rpc.headers import HeaderReader, Malformed
from extproc.rpc.limits import Limits
from extproc.rpc.stream import Block, Body

_FIXED_SIZES: Final = {f.PRIORITY: 5, f.RST_STREAM: 4, f.PING: 8, f.WINDOW_UPDATE: 4}
_FREE_CONTINUATIONS: Final = 16
"""A header block may be in so many frames before each costs (nghttp2 allows 8)."""


class Connection:
    """One connection's protocol state.

    Args:
        service: what is served.
        limits: what the peer may ask for.
        report: told of each exception that a call raised, with where it happened.
        wake: called when there is something to :meth:`take` outside of this class's own
            methods (a call used its ``send``).

    Attributes:
        fault: what the peer did to end the connection, or ``None``.
    """

    def __init__(
        self,
        service: Service,
        limits: Limits,
        report: Callable[[str, Exception], None],
        wake: Callable[[], None],
    ) -> None:
        self._limits = limits
        self._wake = wake
        self._busy = False
        self._closed = False
        self.fault: ConnectionFault | None = None
        self._calls = Calls(service, limits, report, self._woken)
        self._streams = self._calls.streams
        self._control = Control(self._calls, limits)
        self._heads = HeaderReader(limits.max_header_list_bytes)
        self._max_head_bytes = min(self._heads.max_block_bytes, limits.max_frame_bytes)
        # What has not arrived whole: bytes, a DATA frame, a header block.
        self._preface_left = f.PREFACE
        self._rest = b""
        self._body: Body | None = None
        self._block: Block | None = None
        self._control.greet()

    # ---- what the shell uses ------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the peer has introduced itself (preface and SETTINGS)."""
        return self._control.introduced

    @property
    def finished(self) -> bool:
        """Whether nothing more is to come: close once all is sent."""
        return self._closed or (self._control.leaving and not self._calls.unanswered)

    @property
    def open_calls(self) -> int:
        """Streams that have not been answered to the end."""
        return self._calls.unanswered

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`expire` has work to do (the clock given to ``receive``)."""
        return self._calls.next_deadline

    def take(self) -> bytes:
        """Take the bytes to send."""
        return self._calls.out.take()

    def receive(self, data: bytes | memoryview, now: float) -> None:
        """Take what a read of the socket brought; never raises on account of it.

        Args:
            data: may be a view of a buffer that is used again afterwards.
            now: seconds, from any monotonic clock.
        """
        if self._closed:
            return
        self._control.now = now
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        self._busy = True
        try:
            self._consume(memoryview(data))
        except ConnectionFault as fault:
            self.fault = fault
            self._control.say(f.goaway(self._calls.last_id, fault.code, fault.reason))
            self._close()
        finally:
            self._busy = False

    def expire(self, now: float) -> None:
        """End the calls whose ``grpc-timeout`` has passed."""
        self._calls.expire(now)

    def drain(self) -> None:
        """Ask the peer to open no more streams; those that are open go on."""
        if not self._closed:
            self._control.drain()

    def abort(self, reason: str) -> None:
        """End what is still open (UNAVAILABLE), and the connection."""
        if self._closed:
            return
        self._calls.abort(reason)
        self._control.say(f.goaway(self._calls.last_id, ErrorCode.NO_ERROR))
        self._close()

    def lost(self) -> None:
        """Note that the connection is gone."""
        self._close()
        self._calls.out.unsent.clear()

    # ---- receiving: the hot path --------------------------------------------------

    def _consume(self, data: memoryview) -> None:
        """Work through what has been received, and keep an incomplete frame."""
        at, end = 0, len(data)
        if self._preface_left:
            at = self._check_preface(data)
        if self._body is not None:
            at = self._continue_body(self._body, data, at)
        streams = self._streams
        max_message_bytes = self._limits.max_message_bytes
        unpack_head = f.FRAME_HEAD.unpack_from
        while end - at >= f.FRAME_HEAD_BYTES:
            word, flags, stream_id = unpack_head(data, at)
            start = at + f.FRAME_HEAD_BYTES
            stop = start + (word >> 8)
            kind = word & 0xFF
            if kind == f.DATA and flags <= f.END_STREAM and stop <= end:
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and not stream.ended
                    and not stream.remote_closed
                    and stream.incoming is None
                    and stream.content_left is None
                    and self._block is None
                    and stop - start >= f.MESSAGE_HEAD_BYTES
                ):
                    compressed, size = f.MESSAGE_HEAD.unpack_from(data, start)
                    message = start + f.MESSAGE_HEAD_BYTES
                    if (
                        message + size == stop
                        and not compressed
                        and size <= max_message_bytes
                        and (word >> 8) <= self._limits.max_frame_bytes
                    ):
                        at = stop
                        self._control.data_frames += 1
                        self._control.owe(stream, word >> 8)
                        if flags:
                            stream.remote_closed = True
                        self._calls.deliver(stream, bytes(data[message:stop]))
                        if flags and not stream.ended:
                            self._calls.remote_end(stream)
                        continue
            elif (
                kind == f.HEADERS
                and stop <= end
                and flags & ~f.END_STREAM == f.END_HEADERS
                and self._block is None
                and (word >> 8) <= self._max_head_bytes
            ):
                at = stop
                self._request(
                    stream_id & f.MAX_STREAM_ID,
                    bytes(data[start:stop]),
                    bool(flags & f.END_STREAM),
                )
                continue
            following = self._frame(
                kind, flags, stream_id & f.MAX_STREAM_ID, start, stop, data
            )
            if following is None:
                break
            at = following
        if at < end and not self._closed:
            self._rest = bytes(data[at:])

    # ---- receiving: the general path ----------------------------------------------

    def _check_preface(self, data: memoryview) -> int:
        expected = self._preface_left
        got = bytes(data[: len(expected)])
        if not expected.startswith(got):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
        self._preface_left = expected[len(got) :]
        return len(got)

    def _frame(
        self,
        kind: int,
        flags: int,
        stream_id: int,
        start: int,
        stop: int,
        data: memoryview,
    ) -> int | None:
        """Take one frame: where the next begins, or ``None`` if more has to arrive."""
        size = stop - start
        if size > self._limits.max_frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        if self._block is not None and (
            kind != f.CONTINUATION or stream_id != self._block.stream_id
        ):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self._control.introduced and kind != f.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if kind == f.DATA:
            self._body = self._begin_data(flags, stream_id, size)
            return self._continue_body(self._body, data, start)
        if kind > f.CONTINUATION:
            self._control.spend()
            self._body = Body(None, size, 0)
            return self._continue_body(self._body, data, start)
        fixed = _FIXED_SIZES.get(kind)
        if (fixed is not None and size != fixed) or (
            kind == f.SETTINGS and (size % 6 or (flags & f.ACK and size))
        ):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame of a wrong size")
        if size > self._heads.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frame too large")
        if stop > len(data):
            return None
        payload = bytes(data[start:stop])
        match kind:
            case f.HEADERS:
                self._begin_block(flags, stream_id, payload)
            case f.CONTINUATION:
                self._continue_block(flags, payload)
            case f.RST_STREAM:
                self._reset_by_peer(stream_id)
            case f.WINDOW_UPDATE:
                self._control.window_update(stream_id, payload)
            case f.SETTINGS:
                self._control.settings(flags, stream_id, payload)
            case f.PING:
                self._control.ping(flags, stream_id, payload)
            case f.GOAWAY:
                self._control.goaway(stream_id, size)
            case f.PRIORITY:
                self._control.priority(stream_id)
            case _:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE received")
        return stop

    def _begin_data(self, flags: int, stream_id: int, size: int) -> Body:
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._calls.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on idle stream")
            self._control.spend()
            if not self._calls.was_reset(stream_id):
                self._control.say(f.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self._control.owe(None, size)
            return Body(None, size, flags)
        if stream.remote_closed:
            self._control.owe(None, size)
            self._calls.reset(stream, ErrorCode.STREAM_CLOSED)
            return Body(None, size, flags)
        if size > (1 if flags & f.PADDED else 0):
            self._control.data_frames += 1
        elif not flags & f.END_STREAM:
            self._control.spend()
        self._control.owe(stream, size)
        if flags & f.END_STREAM:
            stream.remote_closed = True
        elif stream.ended:
            # Answered to the end, and yet it keeps sending: ask it to stop (8.1).
            self._calls.reset(stream, ErrorCode.NO_ERROR)
            return Body(None, size, flags)
        return Body(stream, size, flags)

    def _continue_body(self, body: Body, data: memoryview, at: int) -> int:
        """Take what has arrived of a DATA frame, or of one to skip."""
        end = len(data)
        if body.padded:
            if not body.left:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for padding")
            if at == end:
                return at
            body.padded = False
            body.padding = data[at]
            body.left -= 1 + body.padding
            at += 1
            if body.left < 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding too long")
        taken = min(body.left, end - at)
        stream = body.stream
        if taken and stream is not None:
            self._calls.feed(stream, data[at : at + taken])
        at += taken
        body.left -= taken
        skipped = min(body.padding, end - at)
        body.padding -= skipped
        at += skipped
        if not body.left and not body.padding:
            self._body = None
            if body.ends and stream is not None and stream.id in self._streams:
                self._calls.remote_end(stream)
        return at

    def _begin_block(self, flags: int, stream_id: int, payload: bytes) -> None:
        start, stop = 0, len(payload)
        if flags & f.PADDED:
            if not payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for padding")
            start, stop = 1, stop - payload[0]
        if flags & f.PRIORITY_FLAG:
            start += 5
        if start > stop:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding too long")
        block = payload[start:stop]
        ends = bool(flags & f.END_STREAM)
        if flags & f.END_HEADERS:
            self._request(stream_id, block, ends)
            return
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self._block = Block(stream_id, ends, block)

    def _continue_block(self, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        block.pieces.append(payload)
        block.size += len(payload)
        if not payload or len(block.pieces) > _FREE_CONTINUATIONS:
            self._control.spend()
        if block.size > self._heads.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & f.END_HEADERS:
            self._block = None
            self._request(block.stream_id, b"".join(block.pieces), block.ends)

    def _request(self, stream_id: int, block: bytes, ends: bool) -> None:
        """Take a whole header block: a new stream, or the trailers of one."""
        if not self._control.introduced:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if stream_id <= self._calls.last_id:
            self._trailers(stream_id, block, ends)
            return
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not a client's stream")
        self._calls.last_id = stream_id
        try:
            head = self._heads.read(block)
        except Malformed:
            self._control.spend()
            self._calls.reject(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if self._control.refusing:
            self._calls.reject(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            self._calls.open(stream_id, head, ends, self._control.now)

    def _trailers(self, stream_id: int, block: bytes, ends: bool) -> None:
        """Take the headers that end a request, or those of a stream that is closed."""
        well_formed = True
        try:
            self._heads.read_trailers(block)
        except Malformed:
            well_formed = False
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._calls.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not a client's stream")
            self._control.spend()
            if not self._calls.was_reset(stream_id):
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        elif stream.remote_closed:
            self._calls.reset(stream, ErrorCode.STREAM_CLOSED)
        elif not ends or not well_formed:
            self._calls.reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._calls.remote_end(stream)

    def _reset_by_peer(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._calls.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "reset of idle stream")
            self._control.spend()
            return
        if not stream.answered and not stream.ended:
            self._control.spend_reset()
        self._calls.forget(stream)

    # ---- the rest -----------------------------------------------------------------

    def _woken(self) -> None:
        if not self._busy:
            self._wake()

    def _close(self) -> None:
        self._closed = True
        self._rest = b""
        self._body = self._block = None
        self._calls.forget_all()
