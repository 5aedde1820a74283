"""The server side of HTTP/2 for gRPC calls, as a state machine without I/O.

:meth:`Connection.receive` takes the bytes received and passes gRPC messages to the
service's calls; :meth:`Connection.take` returns the bytes to send.  It uses no socket,
clock or event loop: the caller passes the time, and answers one socket read with one
write.

This module parses frames.  :mod:`extproc.rpc.calls` manages the streams and calls,
:mod:`extproc.rpc.outbound` sends, and :mod:`extproc.rpc.control` handles the frames
that concern the whole connection.

:meth:`Connection._consume` is the hot path. It handles the three most frequent kinds of
frame: a DATA frame that is exactly one message, a HEADERS frame that is a complete
request, and a RST_STREAM of a stream that is answered. All other frames take the
general path. The general path would have the same result for these three kinds. A test
verifies this: it passes every byte separately and compares the results.

References are to RFC 9113.
"""

from collections.abc import Callable, Mapping
from typing import Final

from extproc.rpc import frames as f
from extproc.rpc.call import Service
from extproc.rpc.calls import Calls
from extproc.rpc.control import Control
from extproc.rpc.frames import ConnectionFault, ErrorCode, Frame
from extproc.rpc.headers import HeaderReader, Malformed
from extproc.rpc.limits import MAX_SETTINGS, MIN_WORK_BYTES, Held, Limits
from extproc.rpc.stream import Stream
from extproc.rpc.wire_log import WireLog

_FREE_CONTINUATIONS: Final = 16
"""Number of free continuation frames in a header block; each further frame costs a
token of the control budget (nghttp2 allows 8)."""

_STEP_BYTES: Final = 4 * 1024
"""Number of received bytes to process in one step. Each frame counts as its bytes plus
``_FRAME_BYTES``, since a small frame takes as much time as that many bytes of a large
frame."""
_FRAME_BYTES: Final = 1024


def _always() -> bool:
    return True


class _Body:
    """The rest of a DATA frame, or of a frame to skip (``stream`` is ``None``)."""

    __slots__ = ("ends", "left", "padded", "padding", "stream")

    def __init__(self, stream: Stream | None, frame: Frame) -> None:
        is_data = frame.kind == f.DATA
        self.stream = stream
        self.left = frame.size
        self.ends = is_data and bool(frame.flags & f.END_STREAM)
        self.padded = is_data and bool(frame.flags & f.PADDED)
        self.padding = 0


class _Block:
    """A header block split over several frames."""

    __slots__ = ("ends", "pieces", "size", "stream_id")

    def __init__(self, stream_id: int, ends: bool, piece: bytes) -> None:
        self.stream_id = stream_id
        self.ends = ends
        self.pieces = [piece]
        self.size = len(piece)


class Connection:
    """Protocol state of one connection.

    Args:
        service: the application that opens calls.
        limits: bounds on what the peer may use.
        report: receives each exception that a call raised, and the place where it
            happened.
        wake: called when there are bytes to :meth:`take` because a call used its
            ``send`` while no method of this class was running.
        log: receives one line for each frame received or sent; ``None`` for no log.
        held: byte count of the incomplete messages of all connections, including this
            one; ``None`` if there is no other connection.

    Attributes:
        fault: protocol error of the peer that ended the connection, or ``None``.
        behind: whether some received bytes wait for another call of :meth:`receive`.
    """

    def __init__(
        self,
        service: Service,
        limits: Limits,
        report: Callable[[str, Exception], None],
        wake: Callable[[], None],
        log: Callable[[str], None] | None = None,
        held: Held | None = None,
    ) -> None:
        self._limits = limits
        self._wake = wake
        self._wire_log = WireLog(log) if log is not None else None
        self._busy = False
        self._closed = False
        self.behind = False
        self.fault: ConnectionFault | None = None
        self._calls = Calls(service, limits, report, self._woken, held or Held())
        self._streams = self._calls.streams
        self._control = Control(self._calls, limits)
        self._heads = HeaderReader(limits.max_header_list_bytes)
        self._max_head_bytes = min(self._heads.max_block_bytes, limits.max_frame_bytes)
        self._max_whole_bytes = min(
            f.MESSAGE_HEAD_BYTES + limits.max_message_bytes, limits.max_frame_bytes
        )
        control = self._control
        self._takers: Final[Mapping[int, Callable[[Frame], None]]] = {
            f.HEADERS: self._begin_block,
            f.PRIORITY: control.priority,
            f.RST_STREAM: self._reset_by_peer,
            f.SETTINGS: control.settings,
            f.PUSH_PROMISE: control.push_promise,
            f.PING: control.ping,
            f.GOAWAY: control.goaway,
            f.WINDOW_UPDATE: control.window_update,
            f.CONTINUATION: self._continue_block,
        }
        """Handlers by frame type. DATA has no handler because it is handled piece by
        piece. Frames of unknown types are skipped."""
        # Input that is still incomplete: bytes, a DATA frame, or a header block.
        self._preface_left = f.PREFACE
        self._rest = b""
        self._body: _Body | None = None
        self._block: _Block | None = None
        self._incomplete_since: float | None = None
        """Time since which a header block, or the frame in ``_rest``, has been
        incomplete."""
        self._control.introduce()

    def __repr__(self) -> str:
        parts = [repr(self._calls), repr(self._control)]
        if self._body is not None:
            parts.append(f"{self._body.left} bytes left of a frame")
        if self._block is not None:
            parts.append(f"inside a header block of stream {self._block.stream_id}")
        if self.fault is not None:
            parts.append(f"fault {self.fault}")
        if self._closed:
            parts.append("closed")
        return f"<Connection: {', '.join(parts)}>"

    # ---- for the transport --------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the peer's preface and SETTINGS have arrived."""
        return self._control.introduced

    @property
    def finished(self) -> bool:
        """Whether no more output follows; close the socket once all bytes are sent."""
        return self._closed or (
            self._control.leaving and not self._calls.unanswered and not self.behind
        )

    @property
    def open_calls(self) -> int:
        """Number of streams whose answer is not complete."""
        return self._calls.unanswered

    @property
    def opened(self) -> int:
        """Highest stream identifier that the peer has used; grows with each request."""
        return self._calls.last_id

    @property
    def next_deadline(self) -> float | None:
        """Time at which :meth:`expire` has work to do (same clock as ``receive``)."""
        soonest = self._calls.next_deadline
        if self._incomplete_since is None:
            return soonest
        incomplete = self._incomplete_since + self._limits.header_block_s
        return incomplete if soonest is None else min(soonest, incomplete)

    def take(self) -> bytes:
        """Return the bytes to send, and clear them."""
        data = self._calls.out.take()
        if self._wire_log is not None:
            self._wire_log.sent(data)
        return data

    def receive(
        self,
        data: bytes | memoryview,
        now: float,
        may_go_on: Callable[[], bool] = _always,
    ) -> None:
        """Process the bytes of a socket read; never raises, whatever the bytes are.

        Args:
            data: bytes received; may be a view of a buffer that is reused afterwards.
                Empty to continue with the bytes that an earlier call left.
            now: seconds, from any monotonic clock.
            may_go_on: called every few frames; if it returns false, the rest is left
                for later (:attr:`behind`), so that other connections get their turn.
        """
        if self._closed:
            return
        self._control.now = now
        if self._wire_log is not None:
            self._wire_log.received(data)
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        self._busy = True
        self.behind = False
        try:
            progress = self._consume(memoryview(data), may_go_on)
        except ConnectionFault as fault:
            self._fail(fault)
        else:
            if self._rest or self._block or self._incomplete_since is not None:
                self._note_incomplete(progress, now)
        finally:
            self._busy = False

    def _note_incomplete(self, progress: bool, now: float) -> None:
        if self._block is None and (self.behind or not self._rest):
            self._incomplete_since = None
        elif self._incomplete_since is None or (progress and self._block is None):
            self._incomplete_since = now

    def _fail(self, fault: ConnectionFault) -> None:
        self.fault = fault
        self._control.send(f.goaway(self._calls.last_id, fault.code, fault.reason))
        self._close()

    def expire(self, now: float) -> None:
        """End calls, messages or the connection if their time limit has passed."""
        self._calls.expire(now)
        since = self._incomplete_since
        if since is not None and since + self._limits.header_block_s <= now:
            self._fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "incomplete frame"))

    def drain(self) -> None:
        """Ask the peer to open no more streams; open streams continue."""
        if not self._closed:
            self._control.drain()

    def abort(self, reason: str) -> None:
        """End open calls with UNAVAILABLE, then the connection."""
        if self._closed:
            return
        self._calls.abort(reason)
        self._control.send(f.goaway(self._calls.last_id, ErrorCode.NO_ERROR))
        self._close()

    def lost(self) -> None:
        """Drop all streams because the connection is gone."""
        self._close()
        self._calls.out.unsent.clear()

    # ---- receiving: the hot path --------------------------------------------------

    def _consume(self, data: memoryview, may_go_on: Callable[[], bool]) -> bool:
        """Process the received bytes and keep the unprocessed rest.

        Returns:
            Whether any frame, or part of a DATA frame, was processed.
        """
        at, end = self._check_preface(data) if self._preface_left else 0, len(data)
        step_end = at + _STEP_BYTES
        unpack_head = f.FRAME_HEAD.unpack_from
        while at < end:
            start = at + f.FRAME_HEAD_BYTES
            if self._body is not None:
                at = self._continue_body(self._body, data, at)
            elif start > end:
                break
            else:
                word, flags, stream_id = unpack_head(data, at)
                stop = start + (word >> 8)
                kind = word & 0xFF
                if stop <= end and (
                    (
                        kind == f.DATA
                        and self._take_message(flags, stream_id, data, start, stop)
                    )
                    or (
                        kind == f.HEADERS
                        and self._take_request(flags, stream_id, data, start, stop)
                    )
                    or (
                        kind == f.RST_STREAM
                        and self._take_reset(stream_id, start, stop)
                    )
                ):
                    at = stop
                else:
                    frame = Frame(
                        kind,
                        flags,
                        stream_id & f.MAX_STREAM_ID,
                        word >> 8,
                        data[start:stop],
                    )
                    following = self._take_frame(frame, data, start)
                    if following is None:
                        break
                    at = following
            step_end -= _FRAME_BYTES
            if at >= step_end and at < end:
                if not may_go_on():
                    self.behind = True
                    break
                step_end = at + _STEP_BYTES
        if at < end and not self._closed:
            self._rest = bytes(data[at:])
        return at > 0

    def _take_request(
        self, flags: int, stream_id: int, data: memoryview, start: int, stop: int
    ) -> bool:
        """Handle a HEADERS frame with a complete header block; false for any other."""
        if (
            flags & ~f.END_STREAM != f.END_HEADERS
            or self._block is not None
            or stop - start > self._max_head_bytes
        ):
            return False
        block = bytes(data[start:stop])
        self._request(stream_id & f.MAX_STREAM_ID, block, bool(flags & f.END_STREAM))
        return True

    def _take_message(
        self, flags: int, stream_id: int, data: memoryview, start: int, stop: int
    ) -> bool:
        """Handle a DATA frame that is exactly one message; false for any other.

        If it returns false, nothing has been consumed or changed.
        """
        stream = self._streams.get(stream_id)
        if (
            stream is None
            or stream.incoming is not None
            or stream.content_left is not None
            or stream.ended
            or stream.remote_closed
            or flags > f.END_STREAM
            or self._block is not None
            or not f.MESSAGE_HEAD_BYTES <= stop - start <= self._max_whole_bytes
        ):
            return False
        compressed, size = f.MESSAGE_HEAD.unpack_from(data, start)
        message = start + f.MESSAGE_HEAD_BYTES
        if compressed or message + size != stop:
            return False
        self._control.owe(stream, stop - start)
        if flags:
            stream.remote_closed = True
        self._calls.deliver(stream, bytes(data[message:stop]))
        if flags and not stream.ended:
            self._calls.remote_end(stream)
        return True

    def _take_reset(self, stream_id: int, start: int, stop: int) -> bool:
        """Handle the reset of an answered stream, which the peer need not read on."""
        stream = self._streams.get(stream_id)
        if (
            stream is None
            or not stream.answered
            or self._block is not None
            or stop - start != f.FIXED_SIZES[f.RST_STREAM]
        ):
            return False
        self._calls.forget(stream)
        return True

    # ---- receiving: the general path ----------------------------------------------

    def _check_preface(self, data: memoryview) -> int:
        expected = self._preface_left
        got = bytes(data[: len(expected)])
        if not expected.startswith(got):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
        self._preface_left = expected[len(got) :]
        return len(got)

    def _take_frame(self, frame: Frame, data: memoryview, start: int) -> int | None:
        """Handle one frame; return the offset after it, or ``None`` if incomplete."""
        self._check_place(frame)
        take = self._takers.get(frame.kind)
        if take is None:
            if frame.kind == f.DATA:
                stream = self._begin_data(frame)
            else:  # unknown types are ignored (5.5)
                stream = None
                self._control.spend()
            self._body = _Body(stream, frame)
            return self._continue_body(self._body, data, start)
        self._check_size(frame)
        if len(frame.payload) < frame.size:
            return None
        take(frame)
        return start + frame.size

    def _check_place(self, frame: Frame) -> None:
        """Raise ConnectionFault if a frame of this type is not allowed now."""
        if frame.size > self._limits.max_frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        block = self._block
        if block is not None and (
            frame.kind != f.CONTINUATION or frame.stream_id != block.stream_id
        ):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self._control.introduced and frame.kind != f.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")

    def _check_size(self, frame: Frame) -> None:
        """Raise ConnectionFault if the frame's size is not allowed for its type."""
        size = frame.size
        if size != f.FIXED_SIZES.get(frame.kind, size) or (
            frame.kind == f.SETTINGS
            and (size % f.SETTING.size or (frame.flags & f.ACK and size))
        ):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "wrong frame size")
        if size > self._heads.max_block_bytes or (
            frame.kind == f.SETTINGS and size > MAX_SETTINGS * f.SETTING.size
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frame too large")

    def _begin_data(self, frame: Frame) -> Stream | None:
        """Handle the head of a DATA frame; return its open stream, or ``None``."""
        size, ends = frame.size, bool(frame.flags & f.END_STREAM)
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            self._refuse_data(frame)
            return None
        if stream.remote_closed:
            self._control.owe(None, size)
            self._control.blame(stream, ErrorCode.STREAM_CLOSED)
            return None
        if not frame.flags & f.PADDED:
            self._count_content(size, ends)
        self._control.owe(stream, size)
        if ends:
            stream.remote_closed = True
        elif stream.ended:
            # Ask the peer to stop sending on a stream that is fully answered (8.1).
            self._calls.reset(stream, ErrorCode.NO_ERROR)
            return None
        return stream

    def _count_content(self, size: int, ends: bool) -> None:
        """Count a DATA frame as work, or charge the control budget if it is empty."""
        if size >= MIN_WORK_BYTES:
            self._control.large_frames += 1
        elif not size and not ends:
            self._control.spend()

    def _refuse_data(self, frame: Frame) -> None:
        """Handle the head of a DATA frame for a closed or idle stream."""
        if self._calls.is_idle(frame.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on idle stream")
        self._control.spend()
        if not self._calls.was_reset(frame.stream_id):
            self._control.send(f.rst_stream(frame.stream_id, ErrorCode.STREAM_CLOSED))
        self._control.owe(None, frame.size)

    def _continue_body(self, body: _Body, data: memoryview, at: int) -> int:
        """Process the received bytes of a DATA frame or of a frame to skip."""
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
            self._count_content(body.left, body.ends)
        taken = min(body.left, end - at)
        stream = body.stream
        if taken and stream is not None:
            piece = data[at : at + taken]
            taken = self._calls.feed(stream, piece, self._control.now)
        at += taken
        body.left -= taken
        if body.left:
            return at
        skipped = min(body.padding, end - at)
        body.padding -= skipped
        at += skipped
        if not body.padding:
            self._body = None
            if body.ends and stream is not None and stream.id in self._streams:
                self._calls.remote_end(stream)
        return at

    def _begin_block(self, frame: Frame) -> None:
        flags, stream_id, payload = frame.flags, frame.stream_id, frame.payload
        start, stop = 0, len(payload)
        if flags & f.PADDED:
            if not payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for padding")
            start, stop = 1, stop - payload[0]
        if flags & f.PRIORITY_FLAG:
            start += 5
        if start > stop:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding too long")
        block = bytes(payload[start:stop])
        ends = bool(flags & f.END_STREAM)
        if flags & f.END_HEADERS:
            self._request(stream_id, block, ends)
            return
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self._block = _Block(stream_id, ends, block)

    def _continue_block(self, frame: Frame) -> None:
        block, payload = self._block, frame.payload
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stray CONTINUATION")
        block.pieces.append(bytes(payload))
        block.size += len(payload)
        if not payload or len(block.pieces) > _FREE_CONTINUATIONS:
            self._control.spend()
        if block.size > self._heads.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if frame.flags & f.END_HEADERS:
            self._block = None
            self._request(block.stream_id, b"".join(block.pieces), block.ends)

    def _request(self, stream_id: int, block: bytes, ends: bool) -> None:
        """Handle a complete header block, which opens a stream or has trailers."""
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
        full = len(self._streams) >= self._limits.max_concurrent_streams
        if full or self._control.refusing:
            self._control.spend()
            self._calls.reject(stream_id, ErrorCode.REFUSED_STREAM)
        elif head.refusal is not None:
            self._control.spend()
            self._calls.refuse(stream_id, head.refusal, ends)
        else:
            self._calls.open(stream_id, head, ends, self._control.now)

    def _trailers(self, stream_id: int, block: bytes, ends: bool) -> None:
        """Handle trailers, or headers on a closed stream."""
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
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS after end")
        elif stream.remote_closed:
            self._control.blame(stream, ErrorCode.STREAM_CLOSED)
        elif not ends or not well_formed:
            self._control.blame(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._calls.remote_end(stream)

    def _reset_by_peer(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            if self._calls.is_idle(frame.stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "reset of idle stream")
            self._control.spend()
            return
        if not stream.answered and not stream.ended:
            self._control.spend_reset()
        self._calls.forget(stream)

    # ---- internals ----------------------------------------------------------------

    def _woken(self) -> None:
        if not self._busy:
            self._wake()

    def _close(self) -> None:
        self._closed = True
        self._rest = b""
        self._incomplete_since = None
        self._body = self._block = None
        self._calls.forget_all()
