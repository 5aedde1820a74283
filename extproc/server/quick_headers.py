"""Headers messages as Envoy writes them, read without building protobuf's objects.

Of a request's dozen headers five decide anything, yet each costs the general reader two
objects and two texts. This one walks over the bytes and decodes the headers that are
asked for. It knows the encoding that every protobuf writer uses, and gives up on
whatever else the format allows: the general reader takes those.
"""

from __future__ import annotations

from collections.abc import Mapping

from extproc.exchange.events import BodyMode, RequestHeaders, ResponseHeaders

# Tags of protobuf's wire format: field number times eight, plus 2 with a length before
# the value, plus 0 for a number. ProcessingRequest, HttpHeaders, HeaderValue, and
# ProtocolConfiguration (protos/extproc/wire/ext_proc.proto).
_REQUEST_HEADERS, _RESPONSE_HEADERS, _PROTOCOL_CONFIG = 0x12, 0x1A, 0x5A
_METADATA_CONTEXT, _ATTRIBUTES = 0x42, 0x4A
_HEADERS, _END_OF_STREAM = 0x0A, 0x18
_HEADER = _KEY = 0x0A
_RAW_VALUE = 0x1A
_REQUEST_BODY_MODE, _RESPONSE_BODY_MODE = 0x08, 0x10

_MODES = {mode.value: mode for mode in BodyMode}


Wanted = Mapping[bytes, str]
"""Names of the headers to read, in lower case, by the bytes that they are sent as."""


def read_headers(
    data: bytes, wanted: Wanted
) -> RequestHeaders | ResponseHeaders | None:
    """Read a ``ProcessingRequest`` of one of the two headers phases.

    Args:
        data: the serialized message; untrusted.
        wanted: the headers to read; the first of a name counts.

    Returns:
        None for what the general reader must look at: another phase, an unusual
        encoding, or no message at all.
    """
    try:
        return _read(data, wanted)
    except (IndexError, _UnusualError):
        return None


class _UnusualError(Exception):
    """Not as a protobuf writer has it."""


def _read(data: bytes, wanted: Wanted) -> RequestHeaders | ResponseHeaders | None:
    phase = data[0]
    if phase not in (_REQUEST_HEADERS, _RESPONSE_HEADERS):
        return None
    start, end = _span(data, 1)
    headers: dict[str, str] = {}
    position = start
    if start < end and data[start] == _HEADERS:
        position, headers_end = _span(data, start + 1)
        if headers_end > end:
            raise _UnusualError
        headers = _walk(data, position, headers_end, wanted)
        position = headers_end
    end_of_stream = False
    if position < end:
        # Whatever number above 1 there may be, the general reader knows what it means.
        if data[position] != _END_OF_STREAM or data[position + 1] != 1:
            raise _UnusualError
        end_of_stream = True
        position += 2
    if position != end:
        raise _UnusualError
    request_mode, response_mode = _modes(data, end)
    if phase == _RESPONSE_HEADERS:
        return ResponseHeaders(headers, end_of_stream)
    return RequestHeaders(headers, end_of_stream, request_mode, response_mode)


def _span(data: bytes, position: int) -> tuple[int, int]:
    """Read a length of at most 14 bits; return where what it measures starts and ends.

    Raises:
        _UnusualError: a longer one, or one that leads beyond the data.
    """
    length = data[position]
    start = position + 1
    if length >= 0x80:
        high = data[start]
        if high >= 0x80:
            raise _UnusualError
        length = length & 0x7F | high << 7
        start += 1
    end = start + length
    if end > len(data):
        raise _UnusualError
    return start, end


def _walk(data: bytes, position: int, end: int, wanted: Wanted) -> dict[str, str]:
    headers: dict[str, str] = {}
    while position < end:
        if data[position] != _HEADER:
            raise _UnusualError
        # ``_span``, written out: this is done for every header of every request.
        length = data[position + 1]
        position += 2
        if length >= 0x80:
            high = data[position]
            if high >= 0x80:
                raise _UnusualError
            length = length & 0x7F | high << 7
            position += 1
        following = position + length
        if data[position] != _KEY:
            raise _UnusualError
        key_end = position + 2 + data[position + 1]
        name = wanted.get(data[position + 2 : key_end])
        if name is not None:
            if data[position + 1] >= 0x80 or key_end > following or following > end:
                raise _UnusualError
            if name not in headers:
                headers[name] = _value(data, key_end, following)
        position = following
    if position != end:
        raise _UnusualError
    return headers


def _value(data: bytes, position: int, end: int) -> str:
    if position == end:
        return ""
    if data[position] != _RAW_VALUE:
        raise _UnusualError  # Envoy before 1.28 wrote ``value``
    length = data[position + 1]
    start = position + 2
    if length >= 0x80 or start + length != end:
        start, value_end = _span(data, position + 1)
        if value_end != end:
            raise _UnusualError
    return data[start:end].decode("latin-1")


def _modes(data: bytes, position: int) -> tuple[BodyMode | None, BodyMode | None]:
    """Read what may follow the headers: the protocol configuration, if anything.

    Before it may be what we have not asked for; Envoy sends the metadata's context, if
    only an empty one.
    """
    while position < len(data) and data[position] in (_METADATA_CONTEXT, _ATTRIBUTES):
        _, position = _span(data, position + 1)
    if position == len(data):
        return None, None
    if data[position] != _PROTOCOL_CONFIG:
        raise _UnusualError
    position, end = _span(data, position + 1)
    if end != len(data):
        raise _UnusualError
    request_mode = response_mode = 0  # which proto3 does not write
    if position < end and data[position] == _REQUEST_BODY_MODE:
        request_mode = data[position + 1]
        position += 2
    if position < end and data[position] == _RESPONSE_BODY_MODE:
        response_mode = data[position + 1]
        position += 2
    if position != end or request_mode >= 0x80 or response_mode >= 0x80:
        raise _UnusualError
    return _MODES.get(request_mode), _MODES.get(response_mode)
