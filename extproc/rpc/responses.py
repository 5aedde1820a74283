"""Header blocks of gRPC responses and of HTTP error responses.

The blocks use only the static table and literals without indexing. They are therefore
independent of the connection's compression state and can be constants.
"""

from typing import Final

from extproc.rpc.call import StatusCode
from extproc.rpc.frames import END_HEADERS, END_STREAM, FRAME_HEAD, HEADERS


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
"""Frame heads without their last four bytes, the stream identifier."""

MAX_GRPC_MESSAGE_BYTES: Final = 1_024
"""Maximum size of an encoded ``grpc-message``; encoding turns some bytes into three."""


def trailers(status: StatusCode, message: str = "") -> bytes:
    """Encode gRPC trailers; a message that is too long is truncated."""
    block = literal(b"grpc-status", str(int(status)).encode())
    if message:
        data = message.encode()[: MAX_GRPC_MESSAGE_BYTES // 3]
        whole = data.decode(errors="ignore").encode()
        block += literal(b"grpc-message", _percent_encoded(whole))
    return block


def trailers_only(status: StatusCode, message: str = "") -> bytes:
    """Encode a response that consists of a status only (``Trailers-Only``)."""
    return _STATUS_200 + _GRPC + trailers(status, message)


def unsupported_encoding() -> bytes:
    """Encode the refusal of a ``grpc-encoding``, with the accepted encoding."""
    return trailers_only(
        StatusCode.UNIMPLEMENTED, "grpc-encoding: only identity is supported"
    ) + literal(b"grpc-accept-encoding", b"identity")


def http_error(status: int, allow: str = "") -> bytes:
    """Encode an HTTP error for a request that is not gRPC (PROTOCOL-HTTP2.md)."""
    block = b"\x08\x03" + str(status).encode()  # literal, name from index 8: ":status"
    return block + (literal(b"allow", allow.encode()) if allow else b"")


def _percent_encoded(data: bytes) -> bytes:
    """Percent-encode a ``grpc-message``; printable ASCII except ``%`` is unchanged."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in data
    )
