"""DATA frames, which carry the messages of calls; also frames that are skipped.

A DATA frame may be large, so it is processed piece by piece as its bytes arrive. The
most frequent kind, a frame that is exactly one message, is taken as a whole
(:meth:`DataFrames.take_message`).

References are to RFC 9113.
"""

from extproc.rpc import frames as f
from extproc.rpc.calls import Calls
from extproc.rpc.control import Control
from extproc.rpc.frames import ConnectionFault, ErrorCode, Frame
from extproc.rpc.limits import MIN_WORK_BYTES, Limits
from extproc.rpc.stream import Stream


class UnfinishedFrame:
    """The rest of a DATA frame, or of a frame to skip (``stream`` is ``None``)."""

    __slots__ = ("ends", "left", "padded", "padding", "stream")

    def __init__(self, stream: Stream | None, frame: Frame) -> None:
        is_data = frame.kind == f.DATA
        self.stream = stream
        self.left = frame.size
        self.ends = is_data and bool(frame.flags & f.END_STREAM)
        self.padded = is_data and bool(frame.flags & f.PADDED)
        self.padding = 0


class DataFrames:
    """Handles the DATA frames of one connection.

    Attributes:
        unfinished: the frame whose bytes follow, or ``None`` between frames.
    """

    def __init__(self, calls: Calls, control: Control, limits: Limits) -> None:
        self.unfinished: UnfinishedFrame | None = None
        self._calls = calls
        self._streams = calls.streams
        self._control = control
        self._max_whole_bytes = min(
            f.MESSAGE_HEAD_BYTES + limits.max_message_bytes, limits.max_frame_bytes
        )

    def take_message(
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

    def begin(self, frame: Frame) -> UnfinishedFrame:
        """Handle the head of a DATA frame, whose bytes follow in :meth:`go_on`."""
        self.unfinished = UnfinishedFrame(self._open_stream(frame), frame)
        return self.unfinished

    def skip(self, frame: Frame) -> UnfinishedFrame:
        """Ignore the bytes of a frame, which follow in :meth:`go_on`."""
        self.unfinished = UnfinishedFrame(None, frame)
        return self.unfinished

    def go_on(self, frame: UnfinishedFrame, data: memoryview, at: int) -> int:
        """Process the received bytes of the unfinished frame.

        Returns:
            The offset of the first byte that was not processed.
        """
        end = len(data)
        if frame.padded:
            if not frame.left:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for padding")
            if at == end:
                return at
            frame.padded = False
            frame.padding = data[at]
            frame.left -= 1 + frame.padding
            at += 1
            if frame.left < 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding too long")
            self._count_content(frame.left, frame.ends)
        taken = min(frame.left, end - at)
        stream = frame.stream
        if taken and stream is not None:
            piece = data[at : at + taken]
            taken = self._calls.feed(stream, piece, self._control.now)
        at += taken
        frame.left -= taken
        if frame.left:
            return at
        skipped = min(frame.padding, end - at)
        frame.padding -= skipped
        at += skipped
        if not frame.padding:
            self.unfinished = None
            if frame.ends and stream is not None and stream.id in self._streams:
                self._calls.remote_end(stream)
        return at

    def _open_stream(self, frame: Frame) -> Stream | None:
        """Check the head of a DATA frame; return its stream, ``None`` to skip it."""
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
