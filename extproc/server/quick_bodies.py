"""Large body messages as Envoy writes them, read without a copy of the body.

protobuf's reader makes two, one of them in memory that it maps anew. As in
:mod:`extproc.server.quick_headers`, what is unusual is left to it.
"""

from __future__ import annotations

from extproc.exchange.events import RequestBody

# Tags of protobuf's wire format: field number times eight, plus 2 with a length before
# the value, plus 0 for a number. ProcessingRequest and HttpBody.
_REQUEST_BODY = 0x22
_BODY, _END_OF_STREAM = 0x0A, 0x10

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
    size = len(data)
    if size < LARGE_BYTES or data[0] != _REQUEST_BODY:
        return None
    start, length = _length(data, 1)
    if start + length != size or data[start] != _BODY:
        return None
    start, length = _length(data, start + 1)
    end = start + length
    end_of_stream = data[end:] == b"\x10\x01"
    if end != size and not end_of_stream:
        return None
    return RequestBody(memoryview(data)[start:end], end_of_stream)


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
