"""Decodes, checks and caches the header blocks of requests.

HPACK is stateful, so every block has to pass through the decoder in order, with one
exception: a block that did not change the dynamic table decodes to the same headers
until the table changes.  A proxy sends the same block for each stream, so after the
first few requests a block takes one dictionary look-up. If a header such as a trace
identifier differs in each request, a block takes some 20 us more.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from hpack import HPACKError, OversizedHeaderListError

from extproc.rpc.call import StatusCode
from extproc.rpc.frames import ConnectionFault, ErrorCode
from extproc.rpc.hpack import Field, HpackDecoder
from extproc.rpc.responses import http_error, trailers_only, unsupported_encoding


@dataclass(frozen=True, slots=True)
class CallHeaders:
    """A request's headers after all checks."""

    path: str
    headers: Mapping[str, str]
    timeout_s: float | None = None
    """``grpc-timeout``, or ``None``."""
    content_length: int | None = None
    """Number of DATA bytes that the request's ``content-length`` declares, or
    ``None``."""
    refusal: bytes | None = None
    """Response header block if the request is answered without a call (not gRPC,
    unsupported encoding, too many headers), else ``None``."""


class Malformed(Exception):  # noqa: N818 - RFC 9113's word
    """The headers break HTTP/2's rules (RFC 9113, 8.1.1), which is a stream error."""


MAX_REMEMBERED: Final = 64
_MAX_REMEMBERED_BLOCK_BYTES: Final = 512
_MAX_REMEMBERED_FIELD_BYTES: Final = 128
HARD_LIMIT_FACTOR: Final = 4
"""Factor by which a header list may exceed the limit before the connection ends. Above
the limit itself, only the request is refused. Above this multiple of the limit,
decoding stops, so that the decoder's state is lost (gRPC C-core has the same two
limits)."""


class HeaderReader:
    """Reads one connection's request header blocks.

    Args:
        max_header_list_bytes: size limit, counted as for SETTINGS_MAX_HEADER_LIST_SIZE
            (names, values and 32 bytes per header).
    """

    def __init__(self, max_header_list_bytes: int) -> None:
        self._max_bytes = max_header_list_bytes
        self.max_block_bytes: Final = max_header_list_bytes * HARD_LIMIT_FACTOR
        self._decoder = HpackDecoder(self.max_block_bytes)
        self._remembered: dict[bytes, CallHeaders | Malformed] = {}

    def read(self, block: bytes) -> CallHeaders:
        """Read a request's header block.

        Raises:
            Malformed: the stream has to be reset.
            ConnectionFault: decompression failed.
        """
        head = self._remembered.get(block)
        if head is None:
            fields, reusable = self._decode(block)
            try:
                head = checked(fields, self._max_bytes)
            except Malformed as error:
                head = error
            if reusable and len(block) <= _MAX_REMEMBERED_BLOCK_BYTES:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[block] = head
        if isinstance(head, Malformed):
            raise Malformed(*head.args)
        return head

    def read_trailers(self, block: bytes) -> None:
        """Check the trailers of a request; their values are not used.

        Raises:
            Malformed: the stream has to be reset.
            ConnectionFault: decompression failed.
        """
        fields, _ = self._decode(block)
        for name, value in fields:
            if name.startswith(b":"):
                raise Malformed("pseudo header in trailers")
            _check_field(name, value)

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        """Decode a block; return its fields and whether the table stayed unchanged."""
        try:
            fields = self._decoder.decode(block)
        except OversizedHeaderListError:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "header list too large"
            ) from None
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if self._decoder.changed:
            self._remembered.clear()
        return fields, not self._decoder.changed


_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_CONNECTION_HEADERS = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    )
)
_PSEUDO_HEADERS = frozenset((b":method", b":scheme", b":path", b":authority"))
_GRPC_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE)
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNIT_S = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}


def checked(fields: Iterable[Field], max_bytes: int) -> CallHeaders:
    """Check a decoded request header list (RFC 9113 8.2, 8.3; gRPC PROTOCOL-HTTP2.md).

    Raises:
        Malformed: the request breaks HTTP/2's rules.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + 32
        if name.startswith(b":"):
            if name not in _PSEUDO_HEADERS or name in pseudo or headers:
                raise Malformed(f"pseudo header {name!r} unknown, repeated or late")
            if _BAD_VALUE.search(value):
                raise Malformed("forbidden bytes in a header value")
            pseudo[name] = value
            continue
        _check_field(name, value)
        headers[name] = headers[name] + b"," + value if name in headers else value
    path = pseudo.get(b":path")
    if not path or b":method" not in pseudo or b":scheme" not in pseudo:
        raise Malformed("a required pseudo header is missing")
    length = headers.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise Malformed("content-length: expected a number")
    timeout = headers.get(b"grpc-timeout")
    return CallHeaders(
        path.decode("latin-1"),
        MappingProxyType(
            {n.decode("latin-1"): v.decode("latin-1") for n, v in headers.items()}
        ),
        timeout_s(timeout) if timeout is not None else None,
        int(length) if length is not None else None,
        _refusal(pseudo[b":method"], headers, size > max_bytes),
    )


def timeout_s(value: bytes) -> float | None:
    """Parse ``grpc-timeout``; return seconds, or ``None`` if it is invalid.

    >>> timeout_s(b"250m")
    0.25
    """
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _TIMEOUT_UNIT_S[match[2]] if match else None


def _check_field(name: bytes, value: bytes) -> None:
    """Raise Malformed if the field breaks HTTP/2's rules; cache short, valid fields."""
    if len(name) + len(value) <= _MAX_REMEMBERED_FIELD_BYTES:
        _check_again(name, value)
    else:
        _check(name, value)


def _check(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise Malformed("forbidden bytes in a header name")
    if _BAD_VALUE.search(value):
        raise Malformed("forbidden bytes in a header value")
    if name in _CONNECTION_HEADERS or (name == b"te" and value != b"trailers"):
        raise Malformed(f"connection-specific header {name!r}")


_check_again = lru_cache(maxsize=512)(_check)


def _refusal(
    method: bytes, headers: Mapping[bytes, bytes], too_large: bool
) -> bytes | None:
    """Return the response to a request that no call can serve, or ``None``."""
    if too_large:
        return trailers_only(StatusCode.RESOURCE_EXHAUSTED, "header list too large")
    if not _GRPC_TYPE.fullmatch(headers.get(b"content-type", b"")):
        return http_error(415)
    if method != b"POST":
        return http_error(405, allow="POST")
    if headers.get(b"grpc-encoding", b"identity") != b"identity":
        return unsupported_encoding()
    timeout = headers.get(b"grpc-timeout")
    if timeout is not None and timeout_s(timeout) is None:
        return trailers_only(
            StatusCode.INVALID_ARGUMENT, "grpc-timeout: expected digits and a unit"
        )
    return None
