"""Removes the long strings and number lists of a JSON body, a chunk at a time.

``JsonElider`` looks only for quotes, brackets and backslashes, and works in steps, so
that its caller can do other work in between. It validates nothing: invalid JSON either
stays invalid, or yields an estimate for a body that the backend will reject.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from extproc.exchange.elided_json import ElidedJson, Span, reference, without_marks

CHUNK_BYTES: Final = 32 * 1024
"""Bytes scanned in one step."""

LONG_BYTES: Final = 512
"""Strings and lists of scalars with more bytes than this are elided. Eliding one takes
2 us, as much as parsing this many bytes of non-ASCII text."""

MAX_OUTLINE_BYTES: Final = 1 << 20
"""Maximum size of the elided JSON, which is parsed in one step at 3 ms per MB."""

MAX_ELEMENTS: Final = 8_192
"""Maximum number of values and containers in the elided JSON. Each of them takes up to
0.4 us to parse and gather in that one step, so that 330,000 empty messages in a MB
would take 0.2 s. Each also adds prompt tokens, at least through the chat template, so a
request with more elements needs a large pool, whatever its texts are."""

SIMPLE_BYTES: Final = 8 * 1024
"""Bodies up to this size are too small to contain too many elements."""

DIRECT_BYTES: Final = 256 * 1024
"""Bodies up to this size are parsed directly, which takes 0.1 to 0.8 ms and is faster
than eliding."""

_QUOTE, _BACKSLASH, _COMMA, _LIST, _LIST_END = b'"\\,[]'
_OPENS, _CLOSES, _U, _D, _ZERO, _SEVEN = b"{}ud07"
_CASE: Final = 0x20
"""The bit in which ``[`` differs from ``{``, and a lowercase letter from its
capital."""

ByteArray = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]


def is_large(body: bytes | memoryview) -> bool:
    """Whether a body should be elided before it is parsed.

    The number of commas is an upper bound on the number of elements, which is enough to
    decide about most bodies.
    """
    if len(body) <= SIMPLE_BYTES:
        return False
    if len(body) > DIRECT_BYTES:
        return True
    data = np.frombuffer(body, dtype=np.uint8)
    return bool(np.count_nonzero(data == _COMMA) > MAX_ELEMENTS // 2)


class TooIntricate(Exception):  # noqa: N818 - describes the body
    """The elided JSON is too large to parse."""


class JsonElider:
    """Produces the elided JSON of a body, one chunk in each step.

    Args:
        body: the bytes to elide; they must not change while the elided JSON is in use.
        chunk_bytes: bytes scanned in one step.
    """

    __slots__ = (
        "_at",
        "_body",
        "_bytes",
        "_chunk_bytes",
        "_commas",
        "_copied",
        "_elements",
        "_elided",
        "_escaped",
        "_open",
        "_shrunk",
        "_spans",
    )  # fmt: skip

    def __init__(
        self, body: bytes | memoryview, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._body = memoryview(body)
        self._bytes: ByteArray = np.frombuffer(body, dtype=np.uint8)
        self._elided = bytearray()
        self._spans: list[Span] = []
        self._at = 0
        self._copied = 0
        """Offset up to which the body has been copied or elided."""
        self._elements = 0
        self._escaped = False
        """Whether the last chunk ended in a backslash that escapes the next byte."""
        # The string or list of scalars that continues in the next chunk: its start (-1
        # if there is none), the number of bytes that decoding removes from a string,
        # and the number of commas in a list.
        self._open = -1
        self._shrunk = 0
        self._commas = 0

    def step(self) -> bool:
        """Scan the next chunk. Return false if none is left.

        Raises:
            TooIntricate: the elided JSON is too large.
        """
        start, size = self._at, len(self._bytes)
        self._at = min(start + self._chunk_bytes, size)
        chunk = self._bytes[start : self._at]
        quotes, escapes = self._quotes_and_escapes(chunk)
        shrinkage = self._shrinkage(start, escapes)
        if quotes.size or not self._in_string:
            self._take_spans(start, chunk, quotes, escapes, shrinkage)
        else:
            self._shrunk += int(shrinkage.sum())
        settled = self._at if self._open < 0 else self._open
        outline_bytes = len(self._elided) + settled - self._copied
        if outline_bytes > MAX_OUTLINE_BYTES or self._elements > MAX_ELEMENTS:
            raise TooIntricate
        return self._at < size

    def elided(self) -> ElidedJson:
        """Return the elided JSON after the last step; empty if a bracket is open."""
        if self._open >= 0:
            return ElidedJson(b"", self._body, ())
        self._copy_to(len(self._bytes))
        return ElidedJson(bytes(self._elided), self._body, self._spans)

    @property
    def _in_string(self) -> bool:
        return self._open >= 0 and bool(self._bytes[self._open] == _QUOTE)

    def _quotes_and_escapes(self, chunk: ByteArray) -> tuple[Places, Places]:
        """Find the unescaped quotes, and the backslashes that escape the next byte."""
        is_quote = chunk == _QUOTE
        escapes = np.flatnonzero(chunk == _BACKSLASH)
        if escapes.size:
            escapes = _escaping(escapes, self._escaped)
        if self._escaped and chunk.size:
            is_quote[0] = False
        self._escaped = bool(escapes.size) and int(escapes[-1]) == len(chunk) - 1
        is_quote[(escapes[:-1] if self._escaped else escapes) + 1] = False
        quotes = np.flatnonzero(is_quote) if is_quote.any() else escapes[:0]
        return quotes, escapes

    def _shrinkage(self, start: int, escapes: Places) -> Places:
        """The number of bytes that decoding removes at each escape."""
        data, last = self._bytes, len(self._bytes) - 1
        shrinkage = np.ones(len(escapes), dtype=np.intp)
        escapes = escapes + start
        unicode = np.flatnonzero(data[np.minimum(escapes + 1, last)] == _U)
        if unicode.size:
            first, second, third = (
                data[np.minimum(escapes[unicode] + place, last)] for place in (2, 3, 4)
            )
            two_bytes = (first == _ZERO) & (second <= _SEVEN)  # below U+0800
            one_byte = two_bytes & (second == _ZERO) & (third <= _SEVEN)
            half = (first | _CASE == _D) & (second > _SEVEN)  # half a surrogate pair
            shrinkage[unicode] = 3 + (two_bytes | half) + one_byte
        return shrinkage

    def _take_spans(
        self,
        start: int,
        chunk: ByteArray,
        quotes: Places,
        escapes: Places,
        shrinkage: Places,
    ) -> None:
        """Elide the long strings and lists that end in this chunk."""
        brackets, commas = self._structure(chunk, quotes)
        opening = np.count_nonzero(chunk[brackets] | _CASE == _OPENS)
        self._elements += int(opening) + self._commas + len(commas)
        shrunk = _ElementCounts(escapes, shrinkage, self._shrunk)
        commas_seen = _ElementCounts(commas, np.ones_like(commas), self._commas)
        ends = np.sort(np.concatenate((quotes, brackets)))
        kinds = chunk[ends]
        if self._open >= 0:
            ends = np.concatenate(([self._open - start], ends))
            kinds = np.concatenate((self._bytes[[self._open]], kinds))
        is_quote = kinds == _QUOTE
        begins_string = is_quote & (np.cumsum(is_quote) & 1 == 1)
        begins_list = kinds == _LIST
        is_span = begins_string[:-1] | begins_list[:-1] & (kinds[1:] == _LIST_END)
        is_long = np.diff(ends) > LONG_BYTES
        spans = np.flatnonzero(is_span & is_long)
        lows, highs = ends[spans], ends[spans + 1]
        inside = commas_seen.between(lows, highs)
        self._elements -= int(inside.sum())
        for low, high, taken, items in zip(
            (lows + start).tolist(),
            (highs + start).tolist(),
            shrunk.between(lows, highs).tolist(),
            np.where(begins_list[spans], inside + 1, 0).tolist(),
            strict=True,
        ):
            self._leave_out(low, high, taken, items)
        self._open, self._shrunk, self._commas = -1, 0, 0
        if len(ends) and begins_string[-1]:
            self._open = start + int(ends[-1])
            self._shrunk = shrunk.after(int(ends[-1]))
        elif len(ends) and begins_list[-1]:
            self._open = start + int(ends[-1])
            self._commas = commas_seen.after(int(ends[-1]))
            self._elements -= self._commas

    def _structure(self, chunk: ByteArray, quotes: Places) -> tuple[Places, Places]:
        """Find the brackets and commas outside strings."""
        folded = chunk | _CASE
        marks = np.flatnonzero(
            (chunk == _COMMA) | (folded == _OPENS) | (folded == _CLOSES)
        )
        quotes_before = np.searchsorted(quotes, marks) + self._in_string
        marks = marks[quotes_before & 1 == 0]
        is_comma = chunk[marks] == _COMMA
        return marks[~is_comma], marks[is_comma]

    def _leave_out(self, low: int, high: int, shrunk: int, items: int) -> None:
        """Replace the content between two quotes or brackets with a reference."""
        self._copy_to(low)
        self._elided += b'"%b"' % reference(len(self._spans))
        self._copied = high + 1
        size_bytes = high - low - 1 - shrunk
        self._spans.append(Span(low + 1, high, size_bytes, items))

    def _copy_to(self, stop: int) -> None:
        self._elided += without_marks(bytes(self._body[self._copied : stop]))


class _ElementCounts:
    """Running sums by offset in a chunk; offset -1 has the sums of earlier chunks."""

    __slots__ = ("_places", "_sums")

    def __init__(self, places: Places, weights: Places, before: int) -> None:
        self._places = np.concatenate(([-1], places))
        self._sums = np.concatenate(([0, before], before + np.cumsum(weights)))

    def between(self, lows: Places, highs: Places) -> Places:
        """The sums between pairs of offsets."""
        first = np.searchsorted(self._places, lows)
        last = np.searchsorted(self._places, highs)
        found: Places = self._sums[last] - self._sums[first]
        return found

    def after(self, place: int) -> int:
        """The sum from an offset on."""
        first = np.searchsorted(self._places, place)
        return int(self._sums[-1] - self._sums[first])


def _escaping(backslashes: Places, escaped: bool) -> Places:
    """The backslashes that escape the next byte: every other backslash of a run.

    Args:
        backslashes: sorted offsets; at least one.
        escaped: whether byte 0 is itself escaped.
    """
    number = np.arange(len(backslashes))
    begins = np.diff(backslashes, prepend=-2) != 1
    if begins.all() and not (escaped and backslashes[0] == 0):
        return backslashes
    in_run = number - np.maximum.accumulate(np.where(begins, number, 0))
    if escaped and backslashes[0] == 0:
        first_run = int(np.argmin(begins[1:] == 0)) + 1 if begins[1:].any() else None
        in_run[:first_run] += 1
    found: Places = backslashes[in_run & 1 == 0]
    return found
