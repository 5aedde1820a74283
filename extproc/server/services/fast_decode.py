"""Fast decoders for the messages that Envoy sends, without protobuf objects.

A decision uses five of a request's dozen headers, but protobuf's decoder creates two
objects and two strings for each header. It also makes two copies of a large body, one
of them in newly mapped pages. The decoders in this module walk over the bytes, decode
only the wanted headers, and return a view of the body. They support the encoding that
all protobuf serializers produce. The general decoder handles other valid encodings.
"""

from __future__ import annotations

from collections.abc import Callable

from extproc.c_modules import check_interface
from extproc.exchange.events import (
    BodyMode,
    RequestBody,
    RequestHeaders,
    ResponseHeaders,
)

try:
    from extproc.server.services import _fast_decode

    check_interface(_fast_decode, 1)
except ImportError:  # not built, or from an older source
    _fast_decode = None  # type: ignore[assignment]

# Tags of protobuf's wire format: the field number times eight, plus 2 for a
# length-prefixed value or 0 for a varint. The fields are those of ProcessingRequest,
# HttpHeaders, HeaderValue, HttpBody and ProtocolConfiguration
# (protos/extproc/wire/ext_proc.proto).
_REQUEST_HEADERS, _RESPONSE_HEADERS, _REQUEST_BODY = 0x12, 0x1A, 0x22
_HEADERS_PHASES = (_REQUEST_HEADERS, _RESPONSE_HEADERS)
_METADATA_CONTEXT, _ATTRIBUTES, _PROTOCOL_CONFIG = 0x42, 0x4A, 0x5A
_HEADERS, _END_OF_STREAM = 0x0A, 0x18
_HEADER = _KEY = 0x0A
_RAW_VALUE = 0x1A
_BODY = 0x0A
_BODY_ENDS_STREAM = b"\x10\x01"
_REQUEST_BODY_MODE, _RESPONSE_BODY_MODE = 0x08, 0x10

_CONTEXT = (_METADATA_CONTEXT, _ATTRIBUTES)
"""Fields that the router does not use. Envoy sends the metadata context with each
message, even if it is empty."""
_NOT_THE_BODYS = (*_CONTEXT, _PROTOCOL_CONFIG)

_LONGEST_SHIFT = 28
"""Bit shift of the fifth and last byte of a length."""

_MODES = {mode.value: mode for mode in BodyMode}

Wanted = dict[bytes, str]
"""Headers to decode: for the bytes of a name in the message, the name in lower case."""

HeadersRead = tuple[dict[str, str], bool, int, int]
"""The wanted headers, whether the stream ends with them, and the modes of the request
body and of the response body (-1 if the message has no configuration)."""


class _UnusualError(Exception):
    """The encoding differs from that of protobuf's serializers."""


def fast_decode(
    data: bytes, wanted: Wanted
) -> RequestHeaders | ResponseHeaders | RequestBody | None:
    """Decode a ``ProcessingRequest`` with headers or with a request body.

    Args:
        data: the serialized message; untrusted. An event with a body keeps a view of
            it.
        wanted: headers to decode. If a name occurs twice, its first header is used.

    Returns:
        The event, or None if the general decoder has to decode the message because of
        another phase, an unusual encoding, or invalid data.
    """
    phase = data[0] if data else 0
    if phase == _REQUEST_BODY:
        try:
            return _read_body(data)
        except (IndexError, _UnusualError):
            return None
    if phase not in _HEADERS_PHASES:
        return None
    read = read_headers(data, wanted)
    if read is None:
        return None
    headers, ends, request_mode, response_mode = read
    if phase == _RESPONSE_HEADERS:
        return ResponseHeaders(headers, ends)
    return RequestHeaders(
        headers, ends, _MODES.get(request_mode), _MODES.get(response_mode)
    )


def read_headers_in_python(data: bytes, wanted: Wanted) -> HeadersRead | None:
    """Read a serialized ``ProcessingRequest`` in one of the headers phases.

    This is the specification of the C decoder, and the fallback if it was not built.

    Args:
        data: the serialized message; untrusted.
        wanted: headers to decode. If a name occurs twice, its first header is used.

    Returns:
        None if the encoding is unusual, or the message is invalid.
    """
    try:
        return _read_headers(data, wanted)
    except (IndexError, _UnusualError):
        return None


read_headers: Callable[[bytes, Wanted], HeadersRead | None] = (
    read_headers_in_python if _fast_decode is None else _fast_decode.read_headers
)


def _read_headers(data: bytes, wanted: Wanted) -> HeadersRead:
    position, end = _span(data, 1)
    headers: dict[str, str] = {}
    if position < end and data[position] == _HEADERS:
        start, position = _span(data, position + 1)
        headers = _walk(data, start, position, wanted)
    end_of_stream = False
    if position < end:
        # The general decoder handles values above 1.
        if data[position] != _END_OF_STREAM or data[position + 1] != 1:
            raise _UnusualError
        end_of_stream = True
        position += 2
    if position != end:
        raise _UnusualError
    return headers, end_of_stream, *_modes(data, end)


def _walk(data: bytes, position: int, end: int, wanted: Wanted) -> dict[str, str]:
    """Decode the headers between two offsets.

    The end of each header is checked at the end of its value, and the end of the last
    header is checked at the end of the range.
    """
    headers: dict[str, str] = {}
    while position < end:
        if data[position] != _HEADER:
            raise _UnusualError
        # ``_span`` is inlined for short headers, since this runs for every header of
        # every request.
        length = data[position + 1]
        position += 2
        following = position + length
        if length >= 0x80:
            position, following = _span(data, position - 1)
        if data[position] != _KEY:
            raise _UnusualError
        key = position + 2
        key_bytes = data[position + 1]
        name = wanted.get(data[key : key + key_bytes])
        if name is not None:
            if key_bytes >= 0x80:
                raise _UnusualError
            if name not in headers:
                headers[name] = _value(data, key + key_bytes, following)
        position = following
    if position != end:
        raise _UnusualError
    return headers


def _value(data: bytes, position: int, end: int) -> str:
    if position == end:
        return ""
    if data[position] != _RAW_VALUE:
        raise _UnusualError  # Envoy before 1.28 sent ``value``
    length = data[position + 1]
    start, value_end = position + 2, position + 2 + length
    if length >= 0x80:
        start, value_end = _span(data, position + 1)
    if value_end != end:
        raise _UnusualError
    return data[start:end].decode("latin-1")


def _modes(data: bytes, position: int) -> tuple[int, int]:
    """Decode the optional protocol configuration after the headers."""
    position = _pass_over(data, position, _CONTEXT)
    if position == len(data):
        return -1, -1
    if data[position] != _PROTOCOL_CONFIG:
        raise _UnusualError
    position, end = _span(data, position + 1)
    if end != len(data):
        raise _UnusualError
    request_mode = response_mode = 0  # proto3 does not serialize zeros
    if position < end and data[position] == _REQUEST_BODY_MODE:
        request_mode = data[position + 1]
        position += 2
    if position < end and data[position] == _RESPONSE_BODY_MODE:
        response_mode = data[position + 1]
        position += 2
    if position != end or request_mode >= 0x80 or response_mode >= 0x80:
        raise _UnusualError
    return request_mode, response_mode


def _read_body(data: bytes) -> RequestBody | None:
    start, phase_end = _span(data, 1)
    if data[start] != _BODY:
        return None
    start, end = _span(data, start + 1)
    end_of_stream = data[end:phase_end] == _BODY_ENDS_STREAM
    if end != phase_end and not end_of_stream:
        return None
    if _pass_over(data, phase_end, _NOT_THE_BODYS) != len(data):
        return None
    return RequestBody(memoryview(data)[start:end], end_of_stream)


def _pass_over(data: bytes, position: int, tags: tuple[int, ...]) -> int:
    """Skip length-prefixed fields with the given tags."""
    while position < len(data) and data[position] in tags:
        _, position = _span(data, position + 1)
    return position


def _span(data: bytes, position: int) -> tuple[int, int]:
    """Read a length; return the start and end of the bytes after it.

    Raises:
        _UnusualError: the length has more than five bytes, or exceeds the data.
    """
    length = data[position]
    start = position + 1
    if length >= 0x80:
        byte = data[start]
        start += 1
        length = length & 0x7F | (byte & 0x7F) << 7
        shift = 14
        while byte >= 0x80:
            if shift > _LONGEST_SHIFT:
                raise _UnusualError
            byte = data[start]
            start += 1
            length |= (byte & 0x7F) << shift
            shift += 7
    end = start + length
    if end > len(data):
        raise _UnusualError
    return start, end
