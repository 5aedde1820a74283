"""HTTP/2 frames (RFC 9113): names, numbers and serialization."""

import enum
import struct
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_HEAD_BYTES: Final = 9
MESSAGE_HEAD_BYTES: Final = 5
MAX_WINDOW_BYTES: Final = 2**31 - 1
DEFAULT_WINDOW_BYTES: Final = 65_535
"""Initial window of a stream and of the connection, before any SETTINGS (6.9.2)."""
MAX_STREAM_ID: Final = 2**31 - 1
MIN_MAX_FRAME_BYTES: Final = 16_384
MAX_MAX_FRAME_BYTES: Final = 2**24 - 1

# Frame types (section 6). They are plain integers because several are compared for each
# frame.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

# Flags.
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

# Settings (6.5.2).
HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6


class ErrorCode(enum.IntEnum):
    """Reason for the end of a stream or of the connection (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class ConnectionFault(Exception):  # noqa: N818 - HTTP/2 calls it a connection error
    """A protocol error of the peer that ends the connection (RFC 9113, 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


FRAME_HEAD: Final = struct.Struct(">IBI")
"""Frame head: length and type in one word (``length << 8 | type``), flags, stream
identifier."""

MESSAGE_HEAD: Final = struct.Struct(">BI")
"""Prefix of a gRPC message: compression flag and length."""

DATA_MESSAGE_HEAD: Final = struct.Struct(">IBIBI")
"""Head of a DATA frame, followed by the prefix of its only message."""

U32: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")

FIXED_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
"""Payload sizes in bytes of the frame types with a fixed size."""


class Frame(NamedTuple):
    """A frame received or sent."""

    kind: int
    """Frame type; any byte, since a peer may send unknown types."""
    flags: int
    """Flags as received, including flags that the frame type does not define."""
    stream_id: int
    """Stream identifier without the reserved bit; 0 means the connection."""
    size: int
    """Payload size in bytes."""
    payload: bytes | memoryview = b""
    """The part of the payload received so far."""

    def __str__(self) -> str:
        """Describe the frame in one line, without request content."""
        name = _KINDS.get(self.kind, f"type {self.kind:#x}")
        flags = "|".join(
            flag for bit, flag in _FLAGS.get(self.kind, {}).items() if self.flags & bit
        )
        parts = [name, f"stream={self.stream_id}", f"size={self.size}"]
        return " ".join([*parts, *([flags] if flags else []), *self._details()])

    def _details(self) -> list[str]:
        """Describe the payload of a connection's control frame, if it is complete."""
        if len(self.payload) < self.size:
            return []
        match self.kind:
            case 0x3 | 0x8 if self.size == 4:  # RST_STREAM, WINDOW_UPDATE
                number = U32.unpack(self.payload)[0]
                reset = self.kind == RST_STREAM
                return [_code(number) if reset else f"increment={number}"]
            case 0x4 if self.size % SETTING.size == 0:  # SETTINGS
                pairs = SETTING.iter_unpack(self.payload[:_MAX_SHOWN_BYTES])
                return [f"{_SETTINGS.get(n, f'{n:#x}')}={v}" for n, v in pairs]
            case 0x7 if self.size >= 8:  # GOAWAY, without its free-form debug data
                last, code = struct.unpack_from(">II", self.payload)
                return [f"last_stream={last & MAX_STREAM_ID}", _code(code)]
        return []


def _code(number: int) -> str:
    names = {int(code): code.name for code in ErrorCode}
    return names.get(number, f"error {number:#x}")


_MAX_SHOWN_BYTES: Final = 16 * SETTING.size
_KINDS: Final = dict(
    enumerate(
        (
            *("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS"),
            *("PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE", "CONTINUATION"),
        )
    )
)
_FLAGS: Final = {
    DATA: {END_STREAM: "END_STREAM", PADDED: "PADDED"},
    HEADERS: {
        END_STREAM: "END_STREAM",
        END_HEADERS: "END_HEADERS",
        PADDED: "PADDED",
        PRIORITY_FLAG: "PRIORITY",
    },
    SETTINGS: {ACK: "ACK"},
    PING: {ACK: "ACK"},
    CONTINUATION: {END_HEADERS: "END_HEADERS"},
}
_SETTINGS: Final = {
    HEADER_TABLE_SIZE: "HEADER_TABLE_SIZE",
    ENABLE_PUSH: "ENABLE_PUSH",
    MAX_CONCURRENT_STREAMS: "MAX_CONCURRENT_STREAMS",
    INITIAL_WINDOW_SIZE: "INITIAL_WINDOW_SIZE",
    MAX_FRAME_SIZE: "MAX_FRAME_SIZE",
    MAX_HEADER_LIST_SIZE: "MAX_HEADER_LIST_SIZE",
}


def frame(
    kind: int, flags: int, stream: int, payload: bytes | memoryview = b""
) -> bytes:
    """Serialize one frame; ``payload`` must fit the peer's SETTINGS_MAX_FRAME_SIZE."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """Serialize a SETTINGS frame."""
    return frame(
        SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in values.items())
    )


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """Serialize a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, U32.pack(code))


def window_update(stream: int, increment_bytes: int) -> bytes:
    """Serialize a WINDOW_UPDATE frame; stream 0 means the connection."""
    return frame(WINDOW_UPDATE, 0, stream, U32.pack(increment_bytes))


def goaway(last_stream: int, code: ErrorCode, reason: str = "") -> bytes:
    """Serialize a GOAWAY frame, with the reason as its debug data."""
    payload = struct.pack(">II", last_stream, code) + reason.encode()
    return frame(GOAWAY, 0, 0, payload)
