"""The classes of bytes whose pairs are counted, chosen by how tokenizers split text."""

from __future__ import annotations

from enum import IntEnum


class ByteClass(IntEnum):
    """The class of a byte of UTF-8 text.

    Lowercase letters are divided so that their pairs distinguish languages in ASCII
    letters, which take up to twice as many tokens as English. Continuation bytes are
    divided at the boundaries of Unicode's script blocks.
    """

    LOWER = 0  # b c d f g l m n p r s
    LOWER_AU = 1  # a u
    LOWER_I = 2
    LOWER_O = 3
    LOWER_ET = 4  # e t: with h, one letter in twelve of English starts a pair of these
    LOWER_H = 5
    LOWER_RARE = 6  # j k q v w x y z
    UPPER = 7
    DIGIT = 8
    SPACE = 9
    NEWLINE = 10
    CONTROL = 11  # tab and the other control characters
    STOP = 12  # punctuation of prose: . , ; : ! ? '
    RULE = 13  # used in runs as rules: - = # * ~ _
    BRACKET = 14  # punctuation of data: { } [ ] "
    SYMBOL = 15  # other ASCII punctuation
    TRAIL_80 = 16  # 80-82, and so on up to the next class
    TRAIL_83 = 17
    TRAIL_84 = 18
    TRAIL_88 = 19
    TRAIL_8B = 20
    TRAIL_8E = 21
    TRAIL_90 = 22
    TRAIL_93 = 23
    TRAIL_94 = 24
    TRAIL_96 = 25
    TRAIL_9E = 26
    TRAIL_A0 = 27
    TRAIL_A4 = 28
    TRAIL_A6 = 29
    TRAIL_A8 = 30
    TRAIL_AA = 31
    TRAIL_AC = 32
    TRAIL_AE = 33
    TRAIL_B0 = 34
    TRAIL_B2 = 35
    TRAIL_B4 = 36
    TRAIL_B6 = 37
    TRAIL_B8 = 38
    TRAIL_BA = 39
    TRAIL_BC = 40  # BC-BF
    LATIN_1 = 41  # lead byte C2: symbols, no-break space
    LATIN_ACCENT = 42  # C3: accented letters of western Europe
    LATIN_FAR = 43  # C4-CB: other Latin, IPA
    COMBINING = 44  # CC-CD: combining marks
    GREEK = 45  # CE-CF
    CYRILLIC = 46  # D0: capitals, small letters of the alphabet's first half
    CYRILLIC_LATE = 47  # D1: small letters of the second half
    CYRILLIC_FAR = 48  # D2-D3: letters of non-Slavic languages
    ARMENIAN = 49  # D4-D5
    HEBREW = 50  # D6-D7
    ARABIC = 51  # D8-D9
    ARABIC_FAR = 52  # DA-DF: letters of Persian, Urdu; Syriac, Thaana, N'Ko
    INDIC = 53  # E0: Devanagari to Tibetan
    SOUTHEAST = 54  # E1: Burmese to Vietnamese
    TYPOGRAPHIC = 55  # E2: quotes, dashes, arrows, mathematics
    KANA = 56  # E3
    HAN = 57  # E4-E9
    HANGUL_FIRST = 58  # EA: Yi to Javanese, the first quarter of Hangul
    HANGUL = 59  # EB-ED
    FULL_WIDTH = 60  # EE-EF: private use, full-width forms
    ASTRAL = 61  # F0-FF: emoji, rare scripts


LOWER_CASE = tuple(range(ByteClass.LOWER, ByteClass.LOWER_RARE + 1))
"""The classes of lowercase letters."""

_ASCII_CLASSES = (
    ("au", ByteClass.LOWER_AU),
    ("i", ByteClass.LOWER_I),
    ("o", ByteClass.LOWER_O),
    ("et", ByteClass.LOWER_ET),
    ("h", ByteClass.LOWER_H),
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
    (0x83, ByteClass.TRAIL_83),
    (0x87, ByteClass.TRAIL_84),
    (0x8A, ByteClass.TRAIL_88),
    (0x8D, ByteClass.TRAIL_8B),
    (0x8F, ByteClass.TRAIL_8E),
    (0x92, ByteClass.TRAIL_90),
    (0x93, ByteClass.TRAIL_93),
    (0x95, ByteClass.TRAIL_94),
    (0x9D, ByteClass.TRAIL_96),
    (0x9F, ByteClass.TRAIL_9E),
    (0xA3, ByteClass.TRAIL_A0),
    (0xA5, ByteClass.TRAIL_A4),
    (0xA7, ByteClass.TRAIL_A6),
    (0xA9, ByteClass.TRAIL_A8),
    (0xAB, ByteClass.TRAIL_AA),
    (0xAD, ByteClass.TRAIL_AC),
    (0xAF, ByteClass.TRAIL_AE),
    (0xB1, ByteClass.TRAIL_B0),
    (0xB3, ByteClass.TRAIL_B2),
    (0xB5, ByteClass.TRAIL_B4),
    (0xB7, ByteClass.TRAIL_B6),
    (0xB9, ByteClass.TRAIL_B8),
    (0xBB, ByteClass.TRAIL_BA),
    (0xBF, ByteClass.TRAIL_BC),
    (0xC2, ByteClass.LATIN_1),
    (0xC3, ByteClass.LATIN_ACCENT),
    (0xCB, ByteClass.LATIN_FAR),
    (0xCD, ByteClass.COMBINING),
    (0xCF, ByteClass.GREEK),
    (0xD0, ByteClass.CYRILLIC),
    (0xD1, ByteClass.CYRILLIC_LATE),
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
    (0xEA, ByteClass.HANGUL_FIRST),
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
