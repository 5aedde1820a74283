"""Content-encodings of a whole body, decoded with a bound."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import brotli
import zstandard

MAX_LAYERS = 2
"""Encodings stacked on one body; more is nobody's client."""

MAX_MEMBERS = 64
"""Members of one gzip body, frames of one zstd body: each costs a copy of what is left
of it, and 50,000 empty ones in 1 MB would hold the event loop for seconds. Clients
send one; ``bgzip``, the tool that cuts most, one for each 64 KiB."""

MAX_ZSTD_WINDOW_BYTES = 8 << 20
"""The window that RFC 9659 lets HTTP content use."""


def decode_content(body: bytes, encoding: str, limit_bytes: int) -> bytes | None:
    """Decode a body, or None where that cannot be done within the bound.

    Args:
        body: the whole body as received.
        encoding: the ``content-encoding`` header's value; empty means none.
        limit_bytes: the most that any layer may decode to.

    Returns:
        The decoded body; None for an unknown encoding, too many layers, a corrupt or
        truncated body, or more than ``limit_bytes``.
    """
    layers = [
        name
        for part in encoding.lower().split(",")
        if (name := part.strip()) and name != "identity"
    ]
    if len(layers) > MAX_LAYERS:
        return None
    for layer in reversed(layers):
        decoder = _DECODERS.get(layer)
        if decoder is None:
            return None
        try:
            decoded = decoder(body, limit_bytes)
        except (zlib.error, brotli.error, zstandard.ZstdError, EOFError):
            return None
        if decoded is None or len(decoded) > limit_bytes:
            return None
        body = decoded
    return body


def _gunzip(body: bytes, limit_bytes: int) -> bytes | None:
    decoded = b""
    for _ in range(MAX_MEMBERS):  # a gzip body may be several members in a row
        member = zlib.decompressobj(wbits=31)
        decoded += member.decompress(body, limit_bytes + 1 - len(decoded))
        if not member.eof or len(decoded) > limit_bytes:
            return None
        body = member.unused_data
        if not body:
            return decoded
    return None


def _inflate(body: bytes, limit_bytes: int) -> bytes | None:
    # RFC 9110 means zlib by "deflate"; some clients send the raw format.
    try:
        return _inflate_as(15, body, limit_bytes)
    except zlib.error:
        return _inflate_as(-15, body, limit_bytes)


def _inflate_as(wbits: int, body: bytes, limit_bytes: int) -> bytes | None:
    stream = zlib.decompressobj(wbits=wbits)
    decoded = stream.decompress(body, limit_bytes + 1)
    return decoded if stream.eof else None


def _unbrotli(body: bytes, limit_bytes: int) -> bytes | None:
    stream = brotli.Decompressor()
    decoded: bytes = stream.process(body, output_buffer_limit=limit_bytes + 1)
    return decoded if stream.is_finished() else None


def _unzstd(body: bytes, limit_bytes: int) -> bytes | None:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    stream = decompressor.stream_reader(io.BytesIO(body), read_across_frames=True)
    decoded: bytes = stream.read(limit_bytes + 1)
    if len(decoded) > limit_bytes:
        return None
    # The reader takes a body that stops inside a frame for a whole one. Decoding frame
    # by frame tells, but has no bound of its own: the reader's pass gave it one.
    for _ in range(MAX_MEMBERS):
        frame = decompressor.decompressobj()
        frame.decompress(body)
        if not frame.eof:
            return None
        body = frame.unused_data
        if not body:
            return decoded
    return None


_DECODERS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
