"""Log of a connection's frames, one line for each frame, without request content."""

from collections.abc import Callable, Iterator
from typing import Final

from extproc.rpc import frames as f
from extproc.rpc.frames import Frame

_SHOWN: Final = frozenset((f.RST_STREAM, f.SETTINGS, f.GOAWAY, f.WINDOW_UPDATE))
"""Frame types whose payload describes the connection and contains no request data."""
_MAX_SHOWN_BYTES: Final = 256


class WireLog:
    """Writes one line for each frame of a connection, in both directions.

    Args:
        write: receives each line: ``<`` for received or ``>`` for sent, then the frame.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._received = FrameReader(skip_bytes=len(f.PREFACE))
        self._sent = FrameReader()

    def received(self, data: bytes | memoryview) -> None:
        """Log the frames that a socket read completes."""
        for frame in self._received.read(data):
            self._write(f"< {frame}")

    def sent(self, data: bytes) -> None:
        """Log the frames of a write."""
        for frame in self._sent.read(data):
            self._write(f"> {frame}")


class FrameReader:
    """Splits one direction of a connection into frames.

    A frame is complete as soon as its head has arrived and, if the payload is logged,
    the payload as well. Other payloads are skipped and never stored.

    Args:
        skip_bytes: bytes before the first frame.
    """

    def __init__(self, skip_bytes: int = 0) -> None:
        self._skip = skip_bytes
        self._rest = b""

    def read(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Return the frames that these bytes complete."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        data = self._rest + bytes(data[skipped:])
        at = 0
        while len(data) - at >= f.FRAME_HEAD_BYTES:
            word, flags, stream_id = f.FRAME_HEAD.unpack_from(data, at)
            kind, size, payload = word & 0xFF, word >> 8, b""
            start = at + f.FRAME_HEAD_BYTES
            stop = start + size
            if kind in _SHOWN and size <= _MAX_SHOWN_BYTES:
                if stop > len(data):
                    break
                payload = data[start:stop]
            yield Frame(kind, flags, stream_id & f.MAX_STREAM_ID, size, payload)
            at = min(stop, len(data))
            self._skip = stop - at
        self._rest = data[at:]
