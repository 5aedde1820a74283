"""Content-encodings of a whole body, decoded with a bound."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Generator

import brotli
import zstandard

_IN_BYTES = 16 * 1024
_OUT_BYTES = 256 * 1024
"""What one step takes in at most, and lets out, about: 0.1 to 1 ms."""

MAX_LAYERS = 2
"""Encodings stacked on one body; more is nobody's client."""

MAX_MEMBERS = 64
"""Members of one gzip body, frames of one zstd body: each costs a decoder, and 50,000
empty ones in 1 MB would take a second. Clients send one; ``bgzip``, the tool that cuts
most, one for each 64 KiB."""

MAX_ZSTD_WINDOW_BYTES = 8 << 20
"""The window that RFC 9659 lets HTTP content use."""

MAX_ZSTD_BLOCKS = 64 * 1024
"""A block holds up to 128 KiB; a client that flushes often writes smaller ones.
Empty ones take three bytes each, and as many as fit are read in one step."""

_BLOCKS_AT_ONCE = 2048


Decoding = Generator[None, None, bytes | None]
"""One step each time that it is asked; returns what ``decode_content`` does."""


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
    decoding = decode_in_steps(body, encoding, limit_bytes)
    while True:
        try:
            next(decoding)
        except StopIteration as done:
            decoded: bytes | None = done.value
            return decoded


def decode_in_steps(body: bytes, encoding: str, limit_bytes: int) -> Decoding:
    """Do the same in steps, so that a large body holds nobody up."""
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
            decoded = yield from decoder(body, limit_bytes)
        except (zlib.error, brotli.error, zstandard.ZstdError, EOFError):
            return None
        if decoded is None:
            return None
        body = decoded
    return body


def _gunzip(body: bytes, limit_bytes: int) -> Decoding:
    decoded = bytearray()
    at = 0
    for _ in range(MAX_MEMBERS):  # a gzip body may be several members in a row
        read = yield from _inflate_from(31, body, at, decoded, limit_bytes)
        if read is None:
            return None
        at = read
        if at == len(body):
            return bytes(decoded)
    return None


def _inflate(body: bytes, limit_bytes: int) -> Decoding:
    # RFC 9110 means zlib by "deflate"; some clients send the raw format.
    decoded = bytearray()
    try:
        read = yield from _inflate_from(15, body, 0, decoded, limit_bytes)
    except zlib.error:
        decoded.clear()
        read = yield from _inflate_from(-15, body, 0, decoded, limit_bytes)
    return None if read is None else bytes(decoded)


def _inflate_from(
    wbits: int, body: bytes, at: int, decoded: bytearray, limit_bytes: int
) -> Generator[None, None, int | None]:
    """Decode one stream onto the end of what is decoded; where it ends in the body.

    None if it does not end, or decodes to more than the limit.
    """
    stream = zlib.decompressobj(wbits=wbits)
    taken = b""
    while not stream.eof:
        if not taken:
            taken = body[at : at + _IN_BYTES]
            at += len(taken)
        out = stream.decompress(taken, _OUT_BYTES)
        decoded += out
        if len(decoded) > limit_bytes or not (taken or out):
            return None
        taken = stream.unconsumed_tail
        yield
    return at - len(stream.unused_data)


def _unbrotli(body: bytes, limit_bytes: int) -> Decoding:
    stream = brotli.Decompressor()
    decoded = bytearray()
    at = 0
    while not stream.is_finished():
        taken = b""
        if stream.can_accept_more_data():
            taken = body[at : at + _IN_BYTES]
            at += len(taken)
        out = stream.process(taken, output_buffer_limit=_OUT_BYTES)
        decoded += out
        if len(decoded) > limit_bytes or not (taken or out):
            return None
        yield
    return bytes(decoded) if at == len(body) else None


def _unzstd(body: bytes, limit_bytes: int) -> Decoding:
    # The reader takes a body that stops inside a frame for a whole one, and goes on
    # until it has something to give.
    is_whole = yield from _is_whole_zstd(body)
    if not is_whole:
        return None
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    stream = decompressor.stream_reader(
        io.BytesIO(body), read_size=_IN_BYTES, read_across_frames=True
    )
    decoded = bytearray()
    while out := stream.read1(_OUT_BYTES):
        decoded += out
        if len(decoded) > limit_bytes:
            return None
        yield
    return bytes(decoded)


def _is_whole_zstd(body: bytes) -> Generator[None, None, bool]:
    """Whether a body is frames to its end, and of how many pieces; RFC 8878, 3.1."""
    at = blocks = 0
    for _ in range(MAX_MEMBERS):
        if body[at + 1 : at + 4] == _ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(body[at + 4 : at + 8], "little")
        else:
            header = body[at : at + _ZSTD_HEADER_BYTES]
            has_checksum = zstandard.get_frame_parameters(header).has_checksum
            at += zstandard.frame_header_size(header)
            is_last = False
            while not is_last:
                if at + 3 > len(body) or blocks == MAX_ZSTD_BLOCKS:
                    return False
                head = int.from_bytes(body[at : at + 3], "little")
                is_last, repeats = bool(head & 1), head >> 1 & 3 == 1
                at += 3 + (1 if repeats else head >> 3)
                blocks += 1
                if not blocks % _BLOCKS_AT_ONCE:
                    yield
            at += 4 if has_checksum else 0
        if at >= len(body):
            return at == len(body)
    return False


_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""After a first byte that is the application's to choose from sixteen."""
_ZSTD_HEADER_BYTES = 18
"""The longest that a frame's header gets."""


_DECODERS: dict[str, Callable[[bytes, int], Decoding]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
