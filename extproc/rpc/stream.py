"""State of one HTTP/2 stream: the incoming message and the queued replies."""

from collections import deque
from collections.abc import Callable

from extproc.rpc.call import Call, RpcError, StatusCode
from extproc.rpc.frames import MESSAGE_HEAD, MESSAGE_HEAD_BYTES

MAX_MESSAGES_A_STEP = 4
"""Maximum number of messages of one DATA frame to deliver before other connections get
their turn."""
MAX_SMALL_CHUNKS = 256
_SMALL_CHUNK_BYTES = 1024


class Stream:
    """The connection's record of one stream.

    Attributes:
        wire_id: the stream identifier as four bytes.
        call: the application's call, ``None`` once it is closed.
        answered: whether our HEADERS have been sent.
        ended: whether the answer is complete; END_STREAM follows the queued messages.
        remote_closed: whether the peer's END_STREAM has been received.
        window: number of bytes that this side may send.
        owed: number of received bytes for which no WINDOW_UPDATE was sent yet.
        content_left: number of bytes of the declared ``content-length`` that have not
            arrived yet, or ``None`` if none is declared.
        queue: message bytes that wait for a flow-control window, in order.
        final: trailer block to send after the queue, once ``ended``.
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
            parts.append(f"{self.incoming.held_bytes} bytes of a message received")
        if self.queue:
            parts.append(f"{sum(map(len, self.queue))} bytes waiting for a window")
        return f"<{', '.join(parts)}, window {self.window}>"


class Incoming:
    """Assembles gRPC messages from pieces of DATA.

    Pieces are stored as they arrive and joined when the message is complete. If there
    are many tiny pieces, they are joined earlier, because each piece has tens of bytes
    of overhead.
    """

    __slots__ = ("_head", "_missing", "_pieces", "held_bytes")

    def __init__(self) -> None:
        self._head = b""
        self._missing = 0
        self._pieces: list[bytes] = []
        self.held_bytes = 0

    @property
    def between_messages(self) -> bool:
        """Whether the next message has not begun to arrive."""
        return not self._missing and not self._head

    def feed(
        self,
        data: memoryview,
        max_message_bytes: int,
        deliver: Callable[[bytes], bool],
    ) -> int:
        """Process a piece of DATA and deliver each message that it completes.

        Args:
            deliver: receives a message; returns false to drop the rest.

        Returns:
            The number of bytes consumed. After ``MAX_MESSAGES_A_STEP`` messages the
            rest is left.

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
    """Read a message's prefix; return the message's size in bytes.

    Raises:
        RpcError: the message is too large, or compressed although no ``grpc-encoding``
            was negotiated (INTERNAL, gRPC's compression.md).
    """
    size: int
    compressed, size = MESSAGE_HEAD.unpack_from(data, at)
    if compressed:
        raise RpcError(StatusCode.INTERNAL, "compressed message without grpc-encoding")
    if size > max_message_bytes:
        raise RpcError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"message of {size} bytes exceeds the limit of {max_message_bytes}",
        )
    return size
