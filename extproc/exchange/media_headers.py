"""Image sizes and audio or video durations from the first bytes of a file.

The first kilobytes of a data: URL contain them: within 30 bytes for PNG, WebP, GIF and
BMP, within 4 kB for most JPEGs. A size that is not in these bytes is unknown; no
function here raises an error.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Final

HEAD_CHARS: Final = 8192
"""Number of base64 characters to decode, which are 6 kB of a file. The size of a JPEG
with a longer thumbnail is unknown."""

MAX_PIXELS: Final = 1 << 16
"""Maximum width or height of an image; larger values are invalid."""
_MAX_SECONDS: Final = 24 * 3600.0

_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,")

_MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
"""Bit rates of MPEG 1 layer III by header index (ISO 11172-3, 2.4.2.3)."""


def decode_head(text: str) -> bytes:
    """Decode the first bytes of base64, after an optional ``data:...;base64,``."""
    prefix = _DATA_URL.match(text)
    encoded = text[prefix.end() if prefix else 0 :]
    encoded = encoded[: len(encoded) // 4 * 4]
    try:
        return base64.b64decode(encoded)
    except (ValueError, binascii.Error):
        return b""


def image_size(head: bytes) -> tuple[int, int] | None:
    """Return an image's width and height in pixels, or None if unknown."""
    try:
        size = _image_size(head)
    except (struct.error, IndexError):
        return None
    if size is None or not all(0 < side <= MAX_PIXELS for side in size):
        return None
    return size


def _image_size(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _pair(struct.unpack_from(">II", head, 16))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _pair(struct.unpack_from("<HH", head, 6))
    if head.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", head, 18)
        return abs(width), abs(height)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head)
    return _jpeg_size(head) if head.startswith(b"\xff\xd8") else None


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        low, high = head[24:27], head[27:30]
        if len(high) < 3:
            return None
        return int.from_bytes(low, "little") + 1, int.from_bytes(high, "little") + 1
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Return a JPEG's size from its frame header (ITU T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(head):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        elif marker in (0x01, *range(0xD0, 0xD9)):
            at += 2
        else:
            (length,) = struct.unpack_from(">H", head, at + 2)
            at += 2 + max(2, length)
    return None


def audio_seconds(head: bytes, size_bytes: int) -> float | None:
    """Return the duration of WAV or MP3 audio in seconds, or None if unknown.

    Args:
        head: the file's first bytes.
        size_bytes: the size of the whole file.
    """
    try:
        seconds = _audio_seconds(head, size_bytes)
    except (struct.error, IndexError, ZeroDivisionError):
        return None
    return seconds if seconds is not None and 0 < seconds < _MAX_SECONDS else None


def _audio_seconds(head: bytes, size_bytes: int) -> float | None:
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        at = head.find(b"fmt ")
        (bytes_a_second,) = struct.unpack_from("<I", head, at + 16)
        return float((size_bytes - 44) / bytes_a_second) if at > 0 else None
    at = 0
    if head.startswith(b"ID3"):
        if len(head) < 10:
            return None
        a, b, c, d = head[6:10]
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    if at + 4 <= len(head) and head[at] == 0xFF and head[at + 1] & 0xFA == 0xFA:
        return (size_bytes - at) / (125 * _MP3_KBITS[head[at + 2] >> 4])
    return None


def video_seconds(head: bytes) -> float | None:
    """Return the duration of an MP4 that starts with its movie header, or None."""
    at = head.find(b"mvhd")
    try:
        if at < 0:
            return None
        if head[at + 4] == 0:
            scale, duration = struct.unpack_from(">II", head, at + 16)
        else:
            scale, duration = struct.unpack_from(">IQ", head, at + 24)
        seconds = duration / scale
    except (struct.error, IndexError, ZeroDivisionError):
        return None
    return seconds if 0 < seconds < _MAX_SECONDS else None
