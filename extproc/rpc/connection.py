"""The server side of HTTP/2 for gRPC calls, as a state machine without I/O.

:meth:`Connection.receive` takes the bytes received and passes gRPC messages to the
service's calls; :meth:`Connection.take` returns the bytes to send.  It uses no socket,
clock or event loop: the caller passes the time, and answers one socket read with one
write.

This module splits the bytes into frames and checks their order.
:mod:`extproc.rpc.data_frames` handles the frames that carry messages,
:mod:`extproc.rpc.header_frames` the frames that open calls, and
:mod:`extproc.rpc.control` the frames that concern the whole connection.
:mod:`extproc.rpc.calls` manages the streams and calls, and :mod:`extproc.rpc.outbound`
sends.

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
from extproc.rpc.data_frames import DataFrames
from extproc.rpc.frames import ConnectionFault, ErrorCode, Frame
from extproc.rpc.header_frames import HeaderFrames
from extproc.rpc.limits import MAX_SETTINGS, Held, Limits
from extproc.rpc.wire_log import WireLog

_STEP_BYTES: Final = 4 * 1024
"""Number of received bytes to process in one step. Each frame counts as its bytes plus
``_FRAME_BYTES``, since a small frame takes as much time as that many bytes of a large
frame."""
_FRAME_BYTES: Final = 1024


def _always() -> bool:
    return True


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
        self._data_frames = DataFrames(self._calls, self._control, limits)
        self._header_frames = HeaderFrames(self._calls, self._control, limits)
        control = self._control
        self._takers: Final[Mapping[int, Callable[[Frame], None]]] = {
            f.HEADERS: self._header_frames.begin,
            f.PRIORITY: control.priority,
            f.RST_STREAM: self._reset_by_peer,
            f.SETTINGS: control.settings,
            f.PUSH_PROMISE: control.push_promise,
            f.PING: control.ping,
            f.GOAWAY: control.goaway,
            f.WINDOW_UPDATE: control.window_update,
            f.CONTINUATION: self._header_frames.go_on,
        }
        """Handlers by frame type. DATA has no handler because it is handled piece by
        piece. Frames of unknown types are skipped."""
        # The part of the preface that is expected, and an incomplete frame's bytes.
        self._preface_left = f.PREFACE
        self._rest = b""
        self._incomplete_since: float | None = None
        """Time since which a header block, or the frame in ``_rest``, has been
        incomplete."""
        self._control.introduce()

    def __repr__(self) -> str:
        parts = [repr(self._calls), repr(self._control)]
        if frame := self._data_frames.unfinished:
            parts.append(f"{frame.left} bytes left of a frame")
        if block := self._header_frames.unfinished:
            parts.append(f"inside a header block of stream {block.stream_id}")
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
            if (
                self._rest
                or self._header_frames.unfinished
                or self._incomplete_since is not None
            ):
                self._note_incomplete(progress, now)
        finally:
            self._busy = False

    def _note_incomplete(self, progress: bool, now: float) -> None:
        between_blocks = self._header_frames.unfinished is None
        if between_blocks and (self.behind or not self._rest):
            self._incomplete_since = None
        elif self._incomplete_since is None or (progress and between_blocks):
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
        data_frames, header_frames = self._data_frames, self._header_frames
        while at < end:
            start = at + f.FRAME_HEAD_BYTES
            if data_frames.unfinished is not None:
                at = data_frames.go_on(data_frames.unfinished, data, at)
            elif start > end:
                break
            else:
                word, flags, stream_id = unpack_head(data, at)
                stop = start + (word >> 8)
                kind = word & 0xFF
                if (
                    stop <= end
                    and header_frames.unfinished is None
                    and (
                        (
                            kind == f.DATA
                            and data_frames.take_message(
                                flags, stream_id, data, start, stop
                            )
                        )
                        or (
                            kind == f.HEADERS
                            and header_frames.take_request(
                                flags, stream_id, data, start, stop
                            )
                        )
                        or (
                            kind == f.RST_STREAM
                            and self._take_reset(stream_id, start, stop)
                        )
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

    def _take_reset(self, stream_id: int, start: int, stop: int) -> bool:
        """Handle the reset of an answered stream, which the peer need not read on."""
        stream = self._streams.get(stream_id)
        if (
            stream is None
            or not stream.answered
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
            data_frames = self._data_frames
            if frame.kind == f.DATA:
                unfinished = data_frames.begin(frame)
            else:  # unknown types are ignored (5.5)
                self._control.spend()
                unfinished = data_frames.skip(frame)
            return data_frames.go_on(unfinished, data, start)
        self._check_size(frame)
        if len(frame.payload) < frame.size:
            return None
        take(frame)
        return start + frame.size

    def _check_place(self, frame: Frame) -> None:
        """Raise ConnectionFault if a frame of this type is not allowed now."""
        if frame.size > self._limits.max_frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        block = self._header_frames.unfinished
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
        if size > self._header_frames.max_block_bytes or (
            frame.kind == f.SETTINGS and size > MAX_SETTINGS * f.SETTING.size
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "frame too large")

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
        self._data_frames.unfinished = self._header_frames.unfinished = None
        self._calls.forget_all()
