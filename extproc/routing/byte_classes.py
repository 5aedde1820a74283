"""The classes of bytes whose pairs are counted, chosen by how tokenizers split text."""

from __future__ import annotations

from enum import IntEnum


class ByteClass(IntEnum):
    """The class of a byte of UTF-8 text.

    Lowercase letters are divided so that their pairs distinguish English from other
    languages in ASCII letters, which take up to twice as many tokens as English.
    Continuation bytes are divided at the boundaries of Unicode's script blocks.
    """

    LOWER = 0  # b c d f g l m n p r s
    LOWER_VOWEL = 1  # a i o u
    LOWER_ETH = 2  # e t h: one letter in twelve of English starts a pair of these
    LOWER_RARE = 3  # j k q v w x y z
    UPPER = 4
    DIGIT = 5
    SPACE = 6
    NEWLINE = 7
    CONTROL = 8  # tab and the other control characters
    STOP = 9  # punctuation of prose: . , ; : ! ? '
    RULE = 10  # used in runs as rules: - = # * ~ _
    BRACKET = 11  # punctuation of data: { } [ ] "
    SYMBOL = 12  # other ASCII punctuation
    TRAIL_80 = 13  # 80-82; after E1: Burmese
    TRAIL_83 = 14  # 83-8A; after E1: Georgian, Hangul letters, Ethiopic
    TRAIL_8B = 15  # 8B-8F; after D9: Arabic vowel marks
    TRAIL_90 = 16  # 90-92; after D9: Arabic vowel marks
    TRAIL_93 = 17  # 93-9D; after E1: Canadian syllabics
    TRAIL_9E = 18  # 9E-9F; after E1: Khmer; after F0: emoji
    TRAIL_A0 = 19  # A0-A3
    TRAIL_A4 = 20  # A4-A5; after E0: Devanagari
    TRAIL_A6 = 21  # A6-A7; after E0: Bengali
    TRAIL_A8 = 22  # A8-AF; after E0: Gurmukhi, Gujarati, Odia, Tamil
    TRAIL_B0 = 23  # B0-B7; after E0: Telugu, Kannada, Malayalam, Sinhala
    TRAIL_B8 = 24  # B8-B9; after E0: Thai
    TRAIL_BA = 25  # BA-BF; after E0: Lao, Tibetan; after E1: Vietnamese
    LATIN_1 = 26  # lead byte C2: symbols, no-break space
    LATIN_ACCENT = 27  # C3: accented letters of western Europe
    LATIN_FAR = 28  # C4-CB: other Latin, IPA
    COMBINING = 29  # CC-CD: combining marks
    GREEK = 30  # CE-CF
    CYRILLIC = 31  # D0-D1
    CYRILLIC_FAR = 32  # D2-D3: letters of non-Slavic languages
    ARMENIAN = 33  # D4-D5
    HEBREW = 34  # D6-D7
    ARABIC = 35  # D8-D9
    ARABIC_FAR = 36  # DA-DF: letters of Persian, Urdu; Syriac, Thaana, N'Ko
    INDIC = 37  # E0: Devanagari to Tibetan
    SOUTHEAST = 38  # E1: Burmese to Vietnamese
    TYPOGRAPHIC = 39  # E2: quotes, dashes, arrows, mathematics
    KANA = 40  # E3
    HAN = 41  # E4-E9
    HANGUL = 42  # EA-ED
    FULL_WIDTH = 43  # EE-EF: private use, full-width forms
    ASTRAL = 44  # F0-FF: emoji, rare scripts


LOWER_CASE = tuple(range(ByteClass.LOWER, ByteClass.LOWER_RARE + 1))
"""The classes of lowercase letters."""

_ASCII_CLASSES = (
    ("aiou", ByteClass.LOWER_VOWEL),
    ("eth", ByteClass.LOWER_ETH),
    ("jkqvwxyz", ByteClass.LOWER_RARE),
    (" ", ByteClass.SPACE),
    ("\n\r", ByteClass.NEWLINE),
    ("0123456789", ByteClass.DIGIT),
    (".,;:!?'", ByteClass.STOP),
    ("-=#*~_", ByteClass.RULE),
    ('{}[]"', ByteClass.BRACKET),
)
_LAST_BYTES = (
    (0x82, ByteClass.TRAIL_80),
    (0x8A, ByteClass.TRAIL_83),
    (0x8F, ByteClass.TRAIL_8B),
    (0x92, ByteClass.TRAIL_90),
    (0x9D, ByteClass.TRAIL_93),
    (0x9F, ByteClass.TRAIL_9E),
    (0xA3, ByteClass.TRAIL_A0),
    (0xA5, ByteClass.TRAIL_A4),
    (0xA7, ByteClass.TRAIL_A6),
    (0xAF, ByteClass.TRAIL_A8),
    (0xB7, ByteClass.TRAIL_B0),
    (0xB9, ByteClass.TRAIL_B8),
    (0xBF, ByteClass.TRAIL_BA),
    (0xC2, ByteClass.LATIN_1),
    (0xC3, ByteClass.LATIN_ACCENT),
    (0xCB, ByteClass.LATIN_FAR),
    (0xCD, ByteClass.COMBINING),
    (0xCF, ByteClass.GREEK),
    (0xD1, ByteClass.CYRILLIC),
    (0xD3, ByteClass.CYRILLIC_FAR),
    (0xD5, ByteClass.ARMENIAN),
    (0xD7, ByteClass.HEBREW),
    (0xD9, ByteClass.ARABIC),
    (0xDF, ByteClass.ARABIC_FAR),
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
"""Table for ``bytes.translate`` from byte to class."""

CLASSES = len(ByteClass)
"""Number of classes."""

ROW = 64
"""Number of indices for each first class of a pair: (a, b) has ``ROW * a + b``."""
