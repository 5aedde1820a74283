"""The bytes of HTTP/2 frames (RFC 9113) and of gRPC's response headers.

Response header blocks use only literals without indexing and the static table, so
none depends on the connection's compression state and each can be a constant.
"""

import enum
import struct
from typing import Final

from extproc.rpc.call import StatusCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_HEAD_BYTES: Final = 9
MESSAGE_HEAD_BYTES: Final = 5
MAX_WINDOW_BYTES: Final = 2**31 - 1
DEFAULT_WINDOW_BYTES: Final = 65_535
"""Of streams and of the connection until a peer says otherwise (6.9.2)."""
MAX_STREAM_ID: Final = 2**31 - 1
MIN_MAX_FRAME_BYTES: Final = 16_384
MAX_MAX_FRAME_BYTES: Final = 2**24 - 1

# Frame types (section 6), as plain integers: they are compared once a frame.
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
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6


class ErrorCode(enum.IntEnum):
    """Why a stream or the connection ended (section 7)."""

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
    """What the peer sent ends the connection (RFC 9113, 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


FRAME_HEAD: Final = struct.Struct(">IBI")
"""Length and type in one word (``length << 8 | type``), flags, stream."""

MESSAGE_HEAD: Final = struct.Struct(">BI")
"""gRPC's prefix: compressed flag, length."""

DATA_MESSAGE_HEAD: Final = struct.Struct(">IBIBI")
"""A DATA frame's head and the prefix of the one message that it carries."""

U32: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
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
    """Serialize a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, U32.pack(increment_bytes))


def goaway(last_stream: int, code: ErrorCode, reason: str = "") -> bytes:
    """Serialize a GOAWAY frame, with the reason as its debug data."""
    payload = struct.pack(">II", last_stream, code) + reason.encode()
    return frame(GOAWAY, 0, 0, payload)


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header without indexing or Huffman coding (RFC 7541, 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    head, size = bytearray(b"\x7f"), size - 127
    while size >= 128:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


_STATUS_200 = b"\x88"  # static table, index 8
_GRPC = literal(b"content-type", b"application/grpc")

RESPONSE_HEADERS: Final = _STATUS_200 + _GRPC
OK_TRAILERS: Final = literal(b"grpc-status", b"0")

RESPONSE_HEADERS_HEAD: Final = FRAME_HEAD.pack(
    len(RESPONSE_HEADERS) << 8 | HEADERS, END_HEADERS, 0
)[:5]
OK_TRAILERS_HEAD: Final = FRAME_HEAD.pack(
    len(OK_TRAILERS) << 8 | HEADERS, END_HEADERS | END_STREAM, 0
)[:5]
"""Frame heads up to the stream's four bytes."""

MAX_GRPC_MESSAGE_BYTES: Final = 1_024
"""Of a ``grpc-message`` as sent, where each byte may take three."""


def trailers(status: StatusCode, message: str = "") -> bytes:
    """Encode gRPC's trailers; an overlong message is cut."""
    block = literal(b"grpc-status", str(int(status)).encode())
    if message:
        data = message.encode()[: MAX_GRPC_MESSAGE_BYTES // 3]
        whole = data.decode(errors="ignore").encode()
        block += literal(b"grpc-message", _percent_encoded(whole))
    return block


def trailers_only(status: StatusCode, message: str = "") -> bytes:
    """Encode a response that is nothing but a status (``Trailers-Only``)."""
    return _STATUS_200 + _GRPC + trailers(status, message)


def unsupported_encoding() -> bytes:
    """Encode the refusal of a ``grpc-encoding``, naming the one that is accepted."""
    return trailers_only(
        StatusCode.UNIMPLEMENTED, "grpc-encoding: only identity is supported"
    ) + literal(b"grpc-accept-encoding", b"identity")


def http_error(status: int, allow: str = "") -> bytes:
    """Encode a plain HTTP refusal, for what is not gRPC at all (PROTOCOL-HTTP2.md)."""
    block = b"\x08\x03" + str(status).encode()  # literal, name from index 8: ":status"
    return block + (literal(b"allow", allow.encode()) if allow else b"")


def _percent_encoded(data: bytes) -> bytes:
    """Encode a ``grpc-message``: printable ASCII but ``%`` stays as it is."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in data
    )
