"""The sending half of a connection: bytes to write and flow-control windows."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from extproc.rpc import frames as f
from extproc.rpc.frames import ConnectionFault, ErrorCode
from extproc.rpc.limits import MIN_WORK_BYTES
from extproc.rpc.responses import (
    OK_TRAILERS,
    OK_TRAILERS_HEAD,
    RESPONSE_HEADERS,
    RESPONSE_HEADERS_HEAD,
)
from extproc.rpc.stream import Stream


class Outbound:
    """Collects bytes to send, and queues replies that exceed the peer's windows.

    Args:
        sent_final: called with each stream whose END_STREAM has been written.

    Attributes:
        unsent: bytes that :meth:`take` returns next; append complete frames.
        queued_bytes: bytes of queued messages.
        answered: number of streams with at least a partial answer.
        delayed_frames: number of DATA frames that waited for a window and carried the
            end of a message or at least ``MIN_WORK_BYTES``.
        stream_window: initial window of new streams (the peer's
            SETTINGS_INITIAL_WINDOW_SIZE).
        max_frame_bytes: the peer's SETTINGS_MAX_FRAME_SIZE.
    """

    def __init__(self, sent_final: Callable[[Stream], None]) -> None:
        self.unsent: list[bytes] = []
        self.queued_bytes = 0
        self.answered = 0
        self.delayed_frames = 0
        self.stream_window = f.DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = f.MIN_MAX_FRAME_BYTES
        self._window = f.DEFAULT_WINDOW_BYTES
        # Streams that wait only for the connection's window: their own window has room.
        self._waiting: OrderedDict[int, Stream] = OrderedDict()
        self._sent_final = sent_final

    def take(self) -> bytes:
        """Return the bytes to send, and clear them."""
        if not self.unsent:
            return b""
        data = b"".join(self.unsent)
        self.unsent.clear()
        return data

    def reply(self, stream: Stream, messages: Sequence[bytes]) -> None:
        """Send messages, preceded by the response headers if these are not sent yet."""
        out = self.unsent
        if not stream.answered:
            stream.answered = True
            self.answered += 1
            out += (RESPONSE_HEADERS_HEAD, stream.wire_id, RESPONSE_HEADERS)
        for message in messages:
            size = len(message)
            framed = size + f.MESSAGE_HEAD_BYTES
            if (
                framed <= stream.window
                and framed <= self._window
                and framed <= self.max_frame_bytes
                and not stream.queue
            ):
                stream.window -= framed
                self._window -= framed
                out += (
                    f.DATA_MESSAGE_HEAD.pack(framed << 8, 0, stream.id, 0, size),
                    message,
                )
            else:
                self._queue(stream, f.MESSAGE_HEAD.pack(0, size) + message)

    def finish(self, stream: Stream, block: bytes) -> None:
        """Send the header block that ends a stream, after its queued messages."""
        if stream.queue:
            stream.final = block
        else:
            self._send_final(stream, block)

    def drop(self, stream: Stream) -> None:
        """Drop a stream's queued messages."""
        if stream.queue:
            self.queued_bytes -= sum(map(len, stream.queue))
            self._waiting.pop(stream.id, None)
        stream.queue = stream.final = None

    def credit(self, stream: Stream | None, increment_bytes: int) -> None:
        """Add to a stream's window, or to the connection's if ``stream`` is ``None``.

        Raises:
            ConnectionFault: the connection's window overflows.
        """
        if stream is not None:
            stream.window += increment_bytes
            self._flush(stream)
            return
        self._window += increment_bytes
        if self._window > f.MAX_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
        self.flush()

    def resize_windows(self, streams: Iterable[Stream], value: int) -> None:
        """Apply SETTINGS_INITIAL_WINDOW_SIZE to new and open streams (6.9.2).

        Raises:
            ConnectionFault: a window overflows.
        """
        change = value - self.stream_window
        self.stream_window = value
        for stream in streams:
            stream.window += change
            if stream.window > f.MAX_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
            if stream.queue and stream.window > 0:
                self._waiting[stream.id] = stream

    def flush(self) -> None:
        """Send as much as the windows allow, longest-waiting stream first."""
        while self._waiting and self._window > 0:
            self._flush(next(iter(self._waiting.values())))

    def _queue(self, stream: Stream, data: bytes) -> None:
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(data)
        self.queued_bytes += len(data)
        self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        """Send as much of a stream's queue as the windows allow.

        A stream is listed as waiting for the connection's window only while its own
        window is open, so that a WINDOW_UPDATE of the connection visits only streams
        that can send.
        """
        queue = stream.queue
        if queue is None:
            return
        while queue:
            room = min(stream.window, self._window, self.max_frame_bytes)
            if room <= 0:
                if stream.window > 0:
                    self._waiting[stream.id] = stream
                else:
                    self._waiting.pop(stream.id, None)
                return
            data = queue.popleft()
            size = len(data)
            if size > room:
                queue.appendleft(data[room:])
                data, size = data[:room], room
                self.delayed_frames += room >= MIN_WORK_BYTES
            else:
                self.delayed_frames += 1
            stream.window -= size
            self._window -= size
            self.queued_bytes -= size
            self.unsent.append(f.frame(f.DATA, 0, stream.id, data))
        stream.queue = None
        self._waiting.pop(stream.id, None)
        if stream.final is not None:
            block, stream.final = stream.final, None
            self._send_final(stream, block)

    def _send_final(self, stream: Stream, block: bytes) -> None:
        if block is OK_TRAILERS:
            self.unsent += (OK_TRAILERS_HEAD, stream.wire_id, block)
        else:
            flags = f.END_HEADERS | f.END_STREAM
            self.unsent.append(f.frame(f.HEADERS, flags, stream.id, block))
        self._sent_final(stream)
