"""Text features: how often each class of byte follows each other class.

A class fits in five bits, so one ``translate`` and one ``bincount`` hold every run's
start and length: words, digit groups, indentation, scripts. No decoding to code
points, no tokenizer; about 3 microseconds a kB, flat above ``SAMPLE_BYTES``.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec
import numpy as np
import numpy.typing as npt

from extproc.routing.request import OptionalKind, OptionalText, Prompt


class ByteClass(IntEnum):
    """Classes of a byte of UTF-8 text."""

    LOWER = 0
    UPPER = 1
    DIGIT = 2
    SPACE = 3
    NEWLINE = 4
    CONTROL = 5  # tab and the other controls
    STOP = 6  # punctuation of prose: . , ; : ! ? '
    RULE = 7  # what is drawn with, in runs: - = # * ~ _
    BRACKET = 8  # punctuation of data: { } [ ] "
    SYMBOL = 9  # the rest of ASCII punctuation
    TRAIL_8 = 10  # continuation bytes 80-8F
    TRAIL_9 = 11  # 90-9F
    TRAIL_A = 12  # A0-AF
    TRAIL_B = 13  # B0-BF
    LATIN_1 = 14  # lead byte C2: signs, no-break space
    LATIN_ACCENT = 15  # C3: the diacritics of western Europe
    LATIN_FAR = 16  # C4-CD: other Latin, IPA, combining marks
    GREEK = 17  # CE-CF
    CYRILLIC = 18  # D0-D3
    HEBREW = 19  # D4-D7: Armenian, Hebrew
    ARABIC = 20  # D8-DF
    INDIC = 21  # E0: Devanagari to Lao
    SOUTHEAST = 22  # E1: Tibetan to Vietnamese
    TYPOGRAPHIC = 23  # E2: quotes, dashes, arrows, mathematics
    KANA = 24  # E3
    HAN = 25  # E4-E9
    HANGUL = 26  # EA-ED
    FULL_WIDTH = 27  # EE-EF: private use, full-width forms
    ASTRAL = 28  # F0-FF: emoji, rare scripts


_ASCII_CLASSES = (
    (" ", ByteClass.SPACE),
    ("\n\r", ByteClass.NEWLINE),
    ("0123456789", ByteClass.DIGIT),
    (".,;:!?'", ByteClass.STOP),
    ("-=#*~_", ByteClass.RULE),
    ('{}[]"', ByteClass.BRACKET),
)
_LAST_BYTES = (
    (0x8F, ByteClass.TRAIL_8),
    (0x9F, ByteClass.TRAIL_9),
    (0xAF, ByteClass.TRAIL_A),
    (0xBF, ByteClass.TRAIL_B),
    (0xC2, ByteClass.LATIN_1),
    (0xC3, ByteClass.LATIN_ACCENT),
    (0xCD, ByteClass.LATIN_FAR),
    (0xCF, ByteClass.GREEK),
    (0xD3, ByteClass.CYRILLIC),
    (0xD7, ByteClass.HEBREW),
    (0xDF, ByteClass.ARABIC),
    (0xE0, ByteClass.INDIC),
    (0xE1, ByteClass.SOUTHEAST),
    (0xE2, ByteClass.TYPOGRAPHIC),
    (0xE3, ByteClass.KANA),
    (0xE9, ByteClass.HAN),
    (0xED, ByteClass.HANGUL),
    (0xEF, ByteClass.FULL_WIDTH),
    (0xFF, ByteClass.ASTRAL),
)


def _class_of(byte: int) -> ByteClass:
    if byte >= 0x80:
        return next(cls for last, cls in _LAST_BYTES if byte <= last)
    char = chr(byte)
    for chars, byte_class in _ASCII_CLASSES:
        if char in chars:
            return byte_class
    if byte < 0x20 or byte == 0x7F:
        return ByteClass.CONTROL
    if char.isalpha():
        return ByteClass.LOWER if char.islower() else ByteClass.UPPER
    return ByteClass.SYMBOL


CLASS_TABLE = bytes(_class_of(byte) for byte in range(256))
"""``bytes.translate`` table: byte to its class."""

CLASSES = 32
"""Room for classes; a pair (a, b) is counted at ``CLASSES * a + b``."""

SAMPLE_BYTES = 16384
"""Text longer than this is sampled in windows, spread evenly over it, which keeps the
cost of a megabyte at that of 16 KB. Measured on requests of up to 200 KB and six
tokenizers, the mean error is 3.18 % without sampling, 3.20 % from 32 KB, 3.24 % from
16 KB and 3.38 % from 8 KB."""
_WINDOW_BYTES = 1024
# Its product with bytes has 16 bits; an array, as NumPy takes longer over a scalar.
_CLASSES = np.array(CLASSES, dtype=np.uint16)
_ONES = np.ones(CLASSES, dtype=np.int64)

Counts = npt.NDArray[np.int64]

_NO_PAIRS: Counts = np.zeros(CLASSES * CLASSES, dtype=np.int64)
_NO_PAIRS.flags.writeable = False


class OptionalFeatures(msgspec.Struct, frozen=True, gc=False):
    """The features of text that a template may leave out."""

    kind: OptionalKind
    text_bytes: int
    pairs: Counts
    """As ``Features.pairs``."""


class Features(msgspec.Struct, frozen=True, gc=False):
    """What the estimators know of a prompt; no text is kept."""

    body_bytes: int
    text_bytes: int
    tools_bytes: int
    messages: int
    tools: int
    pairs: Counts
    """1,024 counts: ``pairs[32 * a + b]`` times class ``b`` followed class ``a`` in the
    text, which is taken to follow a newline."""
    tools_pairs: Counts = msgspec.field(default_factory=lambda: _NO_PAIRS)
    """The same of the tool definitions' JSON."""
    optional: tuple[OptionalFeatures, ...] = ()
    """Of each kind of text that the template may leave out."""

    @property
    def optional_bytes(self) -> int:
        """Bytes of text that the template may leave out."""
        return sum(part.text_bytes for part in self.optional)

    def classes(self) -> list[int]:
        """Bytes of text in each class, at the class's number."""
        by_class = self.pairs.reshape(CLASSES, CLASSES)
        totals: list[int] = _ONES.dot(by_class).tolist()  # ``sum`` takes twice as long
        return totals


def measure(prompt: Prompt, body_bytes: int) -> Features:
    """Count a prompt's features.

    Args:
        prompt: what the model will read.
        body_bytes: size of the body on the wire, for the papers' estimator.
    """
    tools_pairs = _NO_PAIRS
    if prompt.tools_text:
        tools_pairs = _count_pairs(prompt.tools_text, prompt.missing_tools_bytes)
    return Features(
        body_bytes=body_bytes,
        text_bytes=len(prompt.text) + prompt.missing_bytes,
        tools_bytes=len(prompt.tools_text) + prompt.missing_tools_bytes,
        messages=prompt.messages,
        tools=prompt.tools,
        pairs=_count_pairs(prompt.text, prompt.missing_bytes),
        tools_pairs=tools_pairs,
        optional=tuple(map(_measure_optional, prompt.optional))
        if prompt.optional
        else (),
    )


def _measure_optional(part: OptionalText) -> OptionalFeatures:
    return OptionalFeatures(
        part.kind,
        len(part.text) + part.missing_bytes,
        _count_pairs(part.text, part.missing_bytes),
    )


def sample_windows(size_bytes: int) -> list[tuple[int, int]]:
    """Where the windows begin and end in which the features of a text are counted."""
    if size_bytes <= SAMPLE_BYTES:
        return [(0, size_bytes)]
    windows = SAMPLE_BYTES // _WINDOW_BYTES
    stride = (size_bytes - _WINDOW_BYTES) / (windows - 1)
    starts = [int(i * stride) for i in range(windows)]
    return [(start, start + _WINDOW_BYTES) for start in starts]


def _count_pairs(text: bytes, missing_bytes: int) -> Counts:
    size = len(text) + missing_bytes
    if size <= SAMPLE_BYTES and not missing_bytes:
        return _count_all(text)
    if not missing_bytes:
        text = b"".join(text[start:stop] for start, stop in sample_windows(size))
    pairs = _count_all(text) * size // max(1, len(text))
    # What rounding lost goes to the commonest pair: all counts are of all the bytes.
    pairs[pairs.argmax()] += size - pairs.sum()
    return pairs


def _count_all(text: bytes) -> Counts:
    classes = np.frombuffer((b"\n" + text).translate(CLASS_TABLE), dtype=np.uint8)
    pairs = classes[:-1] * _CLASSES
    pairs |= classes[1:]
    return np.bincount(pairs, minlength=CLASSES * CLASSES)
