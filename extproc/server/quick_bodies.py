"""Large body messages as Envoy writes them, read without a copy of the body.

protobuf's reader makes two, one of them in memory that it maps anew. As in
:mod:`extproc.server.quick_headers`, what is unusual is left to it.
"""

from __future__ import annotations

from extproc.exchange.events import RequestBody

# Tags of protobuf's wire format: field number times eight, plus 2 with a length before
# the value, plus 0 for a number. ProcessingRequest and HttpBody.
_REQUEST_BODY = 0x22
_BODY = 0x0A
_PASSED_OVER = frozenset({0x42, 0x4A, 0x5A})
"""metadata_context, which Envoy always sends, attributes and protocol_config."""

LARGE_BYTES = 16 * 1024
"""Below, copies cost less than looking at the bytes here."""


def read_body(data: bytes) -> RequestBody | None:
    """Read a ``ProcessingRequest`` whose phase is the request body.

    Args:
        data: the serialized message; untrusted. The event holds a view of it.

    Returns:
        None for what the general reader must look at: a small message, another phase,
        an unusual encoding, or no message at all.
    """
    if len(data) < LARGE_BYTES or data[0] != _REQUEST_BODY:
        return None
    start, length = _length(data, 1)
    phase_end = start + length
    if length < 0 or data[start] != _BODY:
        return None
    start, length = _length(data, start + 1)
    end = start + length
    if length < 0 or end > phase_end or not _says_no_more(data, phase_end):
        return None
    end_of_stream = data[end:phase_end] == b"\x10\x01"
    if end != phase_end and not end_of_stream:
        return None
    return RequestBody(memoryview(data)[start:end], end_of_stream)


def _says_no_more(data: bytes, position: int) -> bool:
    """Whether nothing follows the phase but what is for other phases, or for nobody."""
    size = len(data)
    while position < size:
        if data[position] not in _PASSED_OVER:
            return False
        position, length = _length(data, position + 1)
        position += length
        if length < 0:
            return False
    return position == size


def _length(data: bytes, position: int) -> tuple[int, int]:
    """Read a length; return where what it measures starts, and the length."""
    length = shift = 0
    for octet in data[position : position + 5]:
        position += 1
        length |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            return position, length
    return position, -1
