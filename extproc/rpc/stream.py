"""One HTTP/2 stream's state: the message being received, the replies held back."""

from collections import deque
from collections.abc import Callable

from extproc.rpc.call import Call, RpcError, StatusCode
from extproc.rpc.frames import MESSAGE_HEAD, MESSAGE_HEAD_BYTES

MAX_MESSAGES_A_STEP = 4
"""Messages of one DATA frame that are handed over before others have their turn."""
MAX_SMALL_CHUNKS = 256
_SMALL_CHUNK_BYTES = 1024


class Stream:
    """The connection's record of one stream.

    Attributes:
        wire_id: the stream identifier as four bytes.
        call: the application's side, ``None`` once it is closed.
        answered: our HEADERS have been sent.
        ended: our END_STREAM has been decided; it follows what is queued.
        remote_closed: the peer's END_STREAM has been received.
        window: bytes that we may send.
        owed: bytes received that no WINDOW_UPDATE has returned.
        content_left: of the request's ``content-length`` still to come, or ``None``.
        queue: message bytes that flow control holds back, in order.
        final: the trailer block that follows the queue, once ``ended``.
        incoming: the message being received, ``None`` between messages.
    """

    __slots__ = (
        "answered",
        "call",
        "content_left",
        "ended",
        "final",
        "id",
        "incoming",
        "owed",
        "queue",
        "remote_closed",
        "window",
        "wire_id",
    )

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.wire_id = stream_id.to_bytes(4, "big")
        self.call: Call | None = None
        self.answered = False
        self.ended = False
        self.remote_closed = False
        self.window = window
        self.owed = 0
        self.content_left: int | None = None
        self.queue: deque[bytes] | None = None
        self.final: bytes | None = None
        self.incoming: Incoming | None = None

    def __repr__(self) -> str:
        parts = [f"Stream {self.id}", "answered" if self.answered else "unanswered"]
        if self.ended:
            parts.append("ended")
        if self.remote_closed:
            parts.append("closed by the peer")
        if self.incoming is not None:
            parts.append(f"holds {self.incoming.held_bytes} bytes of a message")
        if self.queue:
            parts.append(f"{sum(map(len, self.queue))} bytes wait for a window")
        return f"<{', '.join(parts)}, window {self.window}>"


class Incoming:
    """Puts gRPC messages together from pieces of DATA.

    Pieces are kept as they come and joined once, when the message is whole; many
    tiny ones are joined on the way, because each costs tens of bytes beside its own.
    """

    __slots__ = ("_head", "_missing", "_pieces", "held_bytes")

    def __init__(self) -> None:
        self._head = b""
        self._missing = 0
        self._pieces: list[bytes] = []
        self.held_bytes = 0

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a next message has been seen."""
        return not self._missing and not self._head

    def feed(
        self,
        data: memoryview,
        max_message_bytes: int,
        deliver: Callable[[bytes], bool],
    ) -> int:
        """Take a piece of DATA and hand over each message that it completes.

        Args:
            deliver: takes a message; false to drop the rest.

        Returns:
            the bytes taken: not all of them after ``MAX_MESSAGES_A_STEP`` messages.

        Raises:
            RpcError: the message is too large, or compressed.
        """
        at, end, left = 0, len(data), MAX_MESSAGES_A_STEP
        while at < end and left:
            if not self._missing:
                taken = min(MESSAGE_HEAD_BYTES - len(self._head), end - at)
                self._head += bytes(data[at : at + taken])
                at += taken
                if len(self._head) < MESSAGE_HEAD_BYTES:
                    return end
                self._missing = message_bytes(self._head, 0, max_message_bytes)
                self._head = b""
                if not self._missing:
                    left -= 1
                    if not deliver(b""):
                        return end
                continue
            piece = bytes(data[at : at + self._missing])
            at += len(piece)
            self._missing -= len(piece)
            if self._missing:
                self._keep(piece)
                return end
            if self._pieces:
                piece = b"".join((*self._pieces, piece))
                self._pieces.clear()
                self.held_bytes = 0
            left -= 1
            if not deliver(piece):
                return end
        return at

    def _keep(self, piece: bytes) -> None:
        pieces = self._pieces
        pieces.append(piece)
        self.held_bytes += len(piece)
        count = len(pieces)
        if count > MAX_SMALL_CHUNKS and self.held_bytes < count * _SMALL_CHUNK_BYTES:
            self._pieces = [b"".join(pieces)]


def message_bytes(data: bytes | memoryview, at: int, max_message_bytes: int) -> int:
    """Read a message's prefix: its size.

    Raises:
        RpcError: it is too large, or compressed although no ``grpc-encoding`` was
            agreed (INTERNAL, gRPC's compression.md).
    """
    size: int
    compressed, size = MESSAGE_HEAD.unpack_from(data, at)
    if compressed:
        raise RpcError(StatusCode.INTERNAL, "compressed message without grpc-encoding")
    if size > max_message_bytes:
        raise RpcError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"message of {size} bytes exceeds {max_message_bytes}",
        )
    return size
