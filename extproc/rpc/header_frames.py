"""HEADERS and CONTINUATION frames, which open calls and end them with trailers.

References are to RFC 9113.
"""

from typing import Final

from extproc.rpc import frames as f
from extproc.rpc.calls import Calls
from extproc.rpc.control import Control
from extproc.rpc.frames import ConnectionFault, ErrorCode, Frame
from extproc.rpc.headers import HeaderReader, Malformed
from extproc.rpc.limits import Limits

_FREE_CONTINUATIONS: Final = 16
"""Number of free continuation frames in a header block; each further frame costs a
token of the control budget (nghttp2 allows 8)."""


class UnfinishedBlock:
    """A header block split over several frames."""

    __slots__ = ("ends", "pieces", "size", "stream_id")

    def __init__(self, stream_id: int, ends: bool, piece: bytes) -> None:
        self.stream_id = stream_id
        self.ends = ends
        self.pieces = [piece]
        self.size = len(piece)


class HeaderFrames:
    """Handles the header blocks of one connection.

    Attributes:
        unfinished: the header block whose CONTINUATION frames follow, or ``None``.
        max_block_bytes: maximum size of a header block.
    """

    def __init__(self, calls: Calls, control: Control, limits: Limits) -> None:
        self.unfinished: UnfinishedBlock | None = None
        self._calls = calls
        self._streams = calls.streams
        self._control = control
        self._limits = limits
        self._reader = HeaderReader(limits.max_header_list_bytes)
        self.max_block_bytes: Final = self._reader.max_block_bytes
        self._max_whole_bytes = min(self.max_block_bytes, limits.max_frame_bytes)

    def take_request(
        self, flags: int, stream_id: int, data: memoryview, start: int, stop: int
    ) -> bool:
        """Handle a HEADERS frame with a complete header block; false for any other."""
        if (
            flags & ~f.END_STREAM != f.END_HEADERS
            or stop - start > self._max_whole_bytes
        ):
            return False
        block = bytes(data[start:stop])
        self._request(stream_id & f.MAX_STREAM_ID, block, bool(flags & f.END_STREAM))
        return True

    def begin(self, frame: Frame) -> None:
        """Handle a HEADERS frame."""
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
        self.unfinished = UnfinishedBlock(stream_id, ends, block)

    def go_on(self, frame: Frame) -> None:
        """Handle a CONTINUATION frame."""
        block, payload = self.unfinished, frame.payload
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stray CONTINUATION")
        block.pieces.append(bytes(payload))
        block.size += len(payload)
        if not payload or len(block.pieces) > _FREE_CONTINUATIONS:
            self._control.spend()
        if block.size > self.max_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if frame.flags & f.END_HEADERS:
            self.unfinished = None
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
            head = self._reader.read(block)
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
            self._reader.read_trailers(block)
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
