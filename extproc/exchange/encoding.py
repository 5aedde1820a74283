"""Bounded decoding of a complete body's content encodings."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Generator

import brotli
import zstandard

_IN_BYTES = 16 * 1024
_OUT_BYTES = 256 * 1024
"""Approximate limit of a step's input and output, in bytes; a step takes 0.1 to 1
ms."""

MAX_LAYERS = 2
"""Maximum number of encodings applied to one body; no real client uses more."""

MAX_MEMBERS = 64
"""Maximum number of gzip members or zstd frames in one body. Each of them needs its own
decoder, so that 50,000 empty members in 1 MB would take a second. Clients send one
member; ``bgzip``, which splits bodies the most, writes one for each 64 KiB."""

MAX_ZSTD_WINDOW_BYTES = 8 << 20
"""Maximum zstd window for HTTP content, in bytes (RFC 9659)."""

MAX_ZSTD_BLOCKS = 64 * 1024
"""Maximum number of zstd blocks in one body. A block contains up to 128 KiB; a client
that flushes often writes smaller blocks. An empty block takes three bytes, and one step
reads as many blocks as fit in its limit."""

_BLOCKS_AT_ONCE = 2048


Decoding = Generator[None, None, bytes | None]
"""A decoder that yields after each step and returns what ``decode_content`` returns."""


def decode_content(body: bytes, encoding: str, limit_bytes: int) -> bytes | None:
    """Decode a body, or return None if it is invalid or exceeds the limit.

    Args:
        body: the complete body as received.
        encoding: the value of the ``content-encoding`` header; empty if absent.
        limit_bytes: the maximum decoded size of each layer.

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
    """Decode in steps, so that a large body does not block other requests."""
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
    for _ in range(MAX_MEMBERS):  # a gzip body can have several members
        read = yield from _inflate_from(31, body, at, decoded, limit_bytes)
        if read is None:
            return None
        at = read
        if at == len(body):
            return bytes(decoded)
    return None


def _inflate(body: bytes, limit_bytes: int) -> Decoding:
    # RFC 9110 defines "deflate" as zlib; some clients send the raw format.
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
    """Append one decoded stream to ``decoded`` and return its end in the body.

    Returns None if the stream is truncated or decodes to more than the limit.
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
    # Check the frames first: the library accepts a body that is truncated inside a
    # frame, and reads on until it has output, however much input that takes.
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
    """Whether a body consists of complete frames, within the limits (RFC 8878, 3.1)."""
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
"""The magic number of skippable frames, without its first byte (0x50 to 0x5F)."""
_ZSTD_HEADER_BYTES = 18
"""Maximum size of a frame header, in bytes."""


_DECODERS: dict[str, Callable[[bytes, int], Decoding]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
