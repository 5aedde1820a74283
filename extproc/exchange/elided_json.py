"""A large JSON body without its long strings and number lists.

Long text is only sampled, so decoding all of it would waste 3 ms per MB if it is not
ASCII. Instead, the parser reads elided JSON, in which references replace the long
values. :mod:`extproc.exchange.json_elider` produces it; this module measures the elided
strings and reads excerpts of them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from json import JSONDecodeError, JSONDecoder
from typing import Final

from extproc.routing.features import sample_windows

_MARK = "\x7f"
"""DEL, the delimiter of a reference: valid unescaped in JSON, and unused in text."""
_DEL = _MARK.encode()
_ESCAPED_DEL = re.compile(rb"\\u007[fF]")
_REFERENCE = re.compile("\x7f([0-9]+)\x7f")

_ESCAPE_BYTES: Final = 6  # \uXXXX
_ESCAPE_BEGINS = re.compile(rb"(?<!\\)\\")
_decode_string = JSONDecoder(strict=False).decode
_WHOLE = re.compile(rb"(?:[^\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*")


def reference(number: int) -> bytes:
    """Return the JSON string that replaces an elided value."""
    return b"%b%d%b" % (_DEL, number, _DEL)


def without_marks(piece: bytes) -> bytes:
    """Return part of a body with every byte that could mark a reference replaced."""
    if _DEL in piece or b"u007" in piece:
        piece = _ESCAPED_DEL.sub(rb"\\u003f", piece.replace(_DEL, b"?"))
    return piece


@dataclass(frozen=True, slots=True)
class Span:
    """A string or a list of scalars that was removed from the elided JSON."""

    start: int
    """Offset of its content in the body."""
    stop: int
    size_bytes: int
    """Size in bytes of a string in UTF-8 without escapes, or of a list as written."""
    items: int = 0
    """Number of items in a list; 0 for a string."""

    @property
    def is_escaped(self) -> bool:
        """Whether the content contains escapes."""
        return self.size_bytes != self.stop - self.start


class ElidedJson:
    """JSON with references in place of its long strings and lists of scalars.

    A reference is a JSON string and stays intact if it is joined into a longer text.
    """

    __slots__ = ("_body", "content", "spans")

    def __init__(
        self, raw: bytes, body: bytes | memoryview, spans: Sequence[Span]
    ) -> None:
        self.content: Final = raw
        """The JSON to parse."""
        self._body = memoryview(body)
        self.spans: Final = spans
        """The elided values; a reference is an index into this list."""

    @property
    def body_bytes(self) -> int:
        """The size of the original body."""
        return len(self._body)

    def items(self, text: str) -> int:
        """The number of items in the list that a reference replaces; otherwise 0."""
        span = self._span_of(text)
        return span.items if span else 0

    def refers(self, text: str) -> bool:
        """Whether a text contains a reference."""
        return _MARK in text

    def head(self, text: str, size: int) -> str:
        """Roughly the first ``size`` characters of a text."""
        if _MARK not in text[:1]:
            return text[:size]
        pieces = self._pieces(text)
        first = next(piece for piece in pieces if piece != b"")
        return self._read(first, 0, size).decode(errors="replace")

    def size_bytes(self, text: str) -> int:
        """A text's size in UTF-8, including the values that it refers to."""
        if _MARK not in text:
            return len(text.encode())
        span = self._span_of(text)
        if span is not None:
            return span.size_bytes
        return sum(_size_bytes(piece) for piece in self._pieces(text))

    def excerpt(self, text: str) -> tuple[bytes, int]:
        """A text in UTF-8: all of it, or the windows in which features are counted.

        Returns:
            The excerpt, and the number of bytes that it omits.
        """
        pieces = self._pieces(text)
        ends = list(accumulate(_size_bytes(piece) for piece in pieces))
        found = b"".join(
            self._read(piece, max(0, start - begin), stop - begin)
            for start, stop in sample_windows(ends[-1])
            for piece, begin in _overlapping(pieces, ends, start, stop)
        )
        return found, ends[-1] - len(found)

    def _span_of(self, text: str) -> Span | None:
        """The elided value, if the text is exactly one reference."""
        number = text[1:-1]
        is_reference = text[:1] == _MARK and number.isdecimal()
        return self.spans[int(number)] if is_reference else None

    def _pieces(self, text: str) -> list[bytes | Span]:
        parts = _REFERENCE.split(text)
        pieces: list[bytes | Span] = [parts[0].encode()]
        for number, between in zip(parts[1::2], parts[2::2], strict=True):
            pieces += (self.spans[int(number)], between.encode())
        return pieces

    def _read(self, piece: bytes | Span, low: int, high: int) -> bytes:
        """Read a piece between two offsets, or from an offset to the piece's end."""
        if isinstance(piece, bytes):
            return piece[low:high]
        high = min(high, piece.size_bytes)
        if not piece.is_escaped:
            return bytes(self._body[piece.start + low : piece.start + high])
        # An approximation: escapes may be distributed unevenly.
        encoded_bytes_each = (piece.stop - piece.start) / piece.size_bytes
        start = piece.start + int(low * encoded_bytes_each)
        stop = (
            start
            + int((high - low + _ESCAPE_BYTES) * encoded_bytes_each)
            + _ESCAPE_BYTES
        )
        before = bytes(self._body[max(piece.start, start - _ESCAPE_BYTES) : start])
        raw = bytes(self._body[start : min(stop, piece.stop)])
        return _unescaped(raw, before)[: high - low]


def _overlapping(
    pieces: Sequence[bytes | Span], ends: Sequence[int], start: int, stop: int
) -> Iterator[tuple[bytes | Span, int]]:
    """The pieces between two offsets of the text, with the offset of each."""
    for i in range(bisect_right(ends, start), len(pieces)):
        begin = ends[i - 1] if i else 0
        if begin >= stop:
            return
        yield pieces[i], begin


def _size_bytes(piece: bytes | Span) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.size_bytes


def _unescaped(raw: bytes, before: bytes) -> bytes:
    """Decode part of a JSON string, without characters that are cut at its ends."""
    if b"\\" in before:
        # A backslash is certain to start an escape only if no backslash precedes it.
        begin = _ESCAPE_BEGINS.search(before + raw, len(before))
        raw = raw[begin.start() - len(before) :] if begin else raw
    if b"\\" not in raw:
        return raw
    match = _WHOLE.match(raw)
    assert match is not None  # the pattern also matches the empty string
    text = match[0].decode(errors="surrogateescape")
    try:
        decoded: str = _decode_string(f'"{text}"')
    except JSONDecodeError:  # invalid escape; the backend will report it
        return raw
    try:
        return decoded.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        return decoded.encode(errors="ignore")
