"""Elides the long strings and number lists of a JSON body, a chunk at a time.

``JsonElider`` looks for quotes, brackets and backslashes only, in steps, so that its
caller can do other work in between. It validates nothing: invalid JSON stays invalid
when it is elided, or gives the estimate of a body that the backend will refuse.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from extproc.exchange.elided_json import ElidedJson, Span, reference, without_marks

CHUNK_BYTES: Final = 32 * 1024
"""What one step looks at."""

LONG_BYTES: Final = 512
"""Strings and lists of scalars above this are left out. To leave one out costs 2 us, as
much as parsing so many bytes of text that is not ASCII."""

MAX_OUTLINE_BYTES: Final = 1 << 20
"""It is parsed in one step, of 3 ms a MB."""

MAX_ELEMENTS: Final = 8_192
"""Values and containers in the elided JSON. Each takes up to 0.4 us to parse and
gather, in that step: 330,000 empty messages in a MB would be 0.2 s. Each also costs
the model tokens, be it through the chat template, so that a request of more of them
needs a large pool whatever its texts are."""

SIMPLE_BYTES: Final = 8 * 1024
"""A body has room for so few elements that nobody need count them."""

DIRECT_BYTES: Final = 256 * 1024
"""Parsing so much directly takes 0.1 to 0.8 ms, less than eliding it first."""

_QUOTE, _BACKSLASH, _COMMA, _LIST, _LIST_END = b'"\\,[]'
_OPENS, _CLOSES, _U, _D, _ZERO, _SEVEN = b"{}ud07"
_CASE: Final = 0x20
"""The bit in which ``[`` differs from ``{``, and a small letter from its capital."""

ByteArray = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]


def is_large(body: bytes | memoryview) -> bool:
    """Whether a body is better read by way of its elided JSON.

    Commas bound the elements from above: most bodies need no closer look.
    """
    if len(body) <= SIMPLE_BYTES:
        return False
    if len(body) > DIRECT_BYTES:
        return True
    data = np.frombuffer(body, dtype=np.uint8)
    return bool(np.count_nonzero(data == _COMMA) > MAX_ELEMENTS // 2)


class TooIntricate(Exception):  # noqa: N818 - says what the body is
    """The elided JSON is too large to be worth its parsing."""


class JsonElider:
    """Makes the elided JSON of a body, a chunk at each step.

    Args:
        body: must stay as it is for as long as its elided JSON is read.
        chunk_bytes: what one step looks at.
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
        """End of the part of the body that was copied or elided."""
        self._elements = 0
        self._escaped = False
        """Whether the last chunk ended in a backslash that escapes what follows."""
        # A string, or a list of scalars, that goes on in the next chunk: where it opens
        # (-1: there is none), what decoding takes off the one, the commas of the other.
        self._open = -1
        self._shrunk = 0
        self._commas = 0

    def step(self) -> bool:
        """Look at the next chunk; false once there is none left.

        Raises:
            TooIntricate: what is not left out is too much.
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
        """Find the quotes that are not escaped, and the backslashes that escape."""
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
        """Bytes that decoding takes off at each escape."""
        data, last = self._bytes, len(self._bytes) - 1
        shrinkage = np.ones(len(escapes), dtype=np.intp)
        escapes = escapes + start
        unicode = np.flatnonzero(data[np.minimum(escapes + 1, last)] == _U)
        if unicode.size:
            first, second, third = (
                data[np.minimum(escapes[unicode] + place, last)] for place in (2, 3, 4)
            )
            two_bytes = (first == _ZERO) & (second <= _SEVEN)  # below U+0800, in UTF-8
            one_byte = two_bytes & (second == _ZERO) & (third <= _SEVEN)
            half = (first | _CASE == _D) & (second > _SEVEN)  # two of them: four bytes
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
        """Leave out the long ones of the strings and lists that end in this chunk."""
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
        """Find the brackets and the commas that are not within strings."""
        folded = chunk | _CASE
        marks = np.flatnonzero(
            (chunk == _COMMA) | (folded == _OPENS) | (folded == _CLOSES)
        )
        quotes_before = np.searchsorted(quotes, marks) + self._in_string
        marks = marks[quotes_before & 1 == 0]
        is_comma = chunk[marks] == _COMMA
        return marks[~is_comma], marks[is_comma]

    def _leave_out(self, low: int, high: int, shrunk: int, items: int) -> None:
        """Put a reference in the place of what lies between two quotes or brackets."""
        self._copy_to(low)
        self._elided += b'"%b"' % reference(len(self._spans))
        self._copied = high + 1
        size_bytes = high - low - 1 - shrunk
        self._spans.append(Span(low + 1, high, size_bytes, items))

    def _copy_to(self, stop: int) -> None:
        self._elided += without_marks(bytes(self._body[self._copied : stop]))


class _ElementCounts:
    """Running sums over places of a chunk; what was there before counts as at -1."""

    __slots__ = ("_places", "_sums")

    def __init__(self, places: Places, weights: Places, before: int) -> None:
        self._places = np.concatenate(([-1], places))
        self._sums = np.concatenate(([0, before], before + np.cumsum(weights)))

    def between(self, lows: Places, highs: Places) -> Places:
        """The sums between pairs of places."""
        first = np.searchsorted(self._places, lows)
        last = np.searchsorted(self._places, highs)
        found: Places = self._sums[last] - self._sums[first]
        return found

    def after(self, place: int) -> int:
        """The sum from a place on."""
        first = np.searchsorted(self._places, place)
        return int(self._sums[-1] - self._sums[first])


def _escaping(backslashes: Places, escaped: bool) -> Places:
    """Those that escape what follows: every other one of a run, from its first.

    Args:
        backslashes: one at least, in order.
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
