"""Text features: how often each class of byte follows each other class.

Sixteen classes keep a pair in one byte, so one ``translate`` and one ``bincount``
hold every run's start and length: words, digit groups, indentation, scripts. No
decoding to code points, no tokenizer; about 3 microseconds a kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from extproc.routing.request import Prompt


class ByteClass(IntEnum):
    """Classes of a byte of UTF-8 text."""

    LOWER = 0
    UPPER = 1
    DIGIT = 2
    SPACE = 3
    NEWLINE = 4
    CONTROL = 5  # tab and the other controls
    STOP = 6  # punctuation of prose: . , ; : ! ? ' -
    BRACKET = 7  # punctuation of data: { } [ ] "
    SYMBOL = 8  # the rest of ASCII punctuation
    CONTINUATION = 9  # 80-BF
    LATIN = 10  # lead byte C0-C9: Latin with diacritics, IPA
    BICAMERAL = 11  # lead byte CA-DF: Greek, Cyrillic, Hebrew, Arabic
    INDIC = 12  # lead byte E0-E1: Indic, Thai, Georgian, Ethiopic
    MARK = 13  # lead byte E2: typographic punctuation, arrows, mathematics
    CJK = 14  # lead byte E3-ED: kana, han, hangul
    WIDE = 15  # lead byte EE-FF: private use, emoji, rare scripts


def _class_of(byte: int) -> ByteClass:
    char = chr(byte)
    if byte >= 0x80:
        for last, byte_class in (
            (0xBF, ByteClass.CONTINUATION),
            (0xC9, ByteClass.LATIN),
            (0xDF, ByteClass.BICAMERAL),
            (0xE1, ByteClass.INDIC),
            (0xE2, ByteClass.MARK),
            (0xED, ByteClass.CJK),
        ):
            if byte <= last:
                return byte_class
        return ByteClass.WIDE
    if char in "\n\r":
        return ByteClass.NEWLINE
    if byte < 0x20 or byte == 0x7F:
        return ByteClass.CONTROL
    for chars, byte_class in (
        (" ", ByteClass.SPACE),
        (".,;:!?'-", ByteClass.STOP),
        ('{}[]"', ByteClass.BRACKET),
        ("0123456789", ByteClass.DIGIT),
    ):
        if char in chars:
            return byte_class
    if char.isalpha():
        return ByteClass.LOWER if char.islower() else ByteClass.UPPER
    return ByteClass.SYMBOL


CLASS_TABLE = bytes(_class_of(byte) for byte in range(256))
"""``bytes.translate`` table: byte to its class."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Features:
    """What the estimators know of a prompt; no text is kept."""

    body_bytes: int
    text_bytes: int
    tools_bytes: int
    messages: int
    tools: int
    pairs: Counts
    """256 counts: ``pairs[16 * a + b]`` times class ``b`` followed class ``a`` in the
    text, which is taken to follow a newline."""

    def classes(self) -> list[int]:
        """Bytes of text in each of the 16 classes."""
        totals: list[int] = self.pairs.reshape(16, 16).sum(axis=0).tolist()
        return totals


def measure(prompt: Prompt, body_bytes: int) -> Features:
    """Count a prompt's features.

    Args:
        prompt: what the model will read.
        body_bytes: size of the body on the wire, for the papers' estimator.
    """
    return Features(
        body_bytes=body_bytes,
        text_bytes=len(prompt.text),
        tools_bytes=len(prompt.tools_text),
        messages=prompt.messages,
        tools=prompt.tools,
        pairs=_count_pairs(prompt.text),
    )


def _count_pairs(text: bytes) -> Counts:
    classes = np.frombuffer((b"\n" + text).translate(CLASS_TABLE), dtype=np.uint8)
    return np.bincount((classes[:-1] << 4) | classes[1:], minlength=256)
