"""The term that counts a character outside ASCII, by the classes of its first bytes."""

from __future__ import annotations

from extproc.routing.byte_classes import CLASS_TABLE, ByteClass

SCRIPT_GROUPS = {
    ByteClass.LATIN_1: "latin",
    ByteClass.LATIN_ACCENT: "latin",
    ByteClass.LATIN_FAR: "latin",
    ByteClass.COMBINING: "latin",
    ByteClass.SOUTHEAST: "latin",
    ByteClass.GREEK: "alphabet",
    ByteClass.CYRILLIC: "alphabet",
    ByteClass.CYRILLIC_LATE: "alphabet",
    ByteClass.CYRILLIC_FAR: "alphabet",
    ByteClass.ARMENIAN: "alphabet",
    ByteClass.HEBREW: "alphabet",
    ByteClass.ARABIC: "alphabet",
    ByteClass.ARABIC_FAR: "alphabet",
    ByteClass.INDIC: "indic",
    ByteClass.KANA: "cjk",
    ByteClass.HAN: "cjk",
    ByteClass.FULL_WIDTH: "cjk",
    ByteClass.HANGUL_FIRST: "hangul",
    ByteClass.HANGUL: "hangul",
    ByteClass.TYPOGRAPHIC: "sign",
    ByteClass.ASTRAL: "sign",
}
"""Group of scripts by class of lead byte. In the scripts of one group, the byte before
a lead byte has the same effect on tokens."""

BOX = "box"
"""The term of characters for drawing boxes."""

SPLITS = {
    ByteClass.INDIC: (
        (0xA0, 0xA5, "devanagari"),
        (0xA6, 0xA7, "bengali"),
        (0xA8, 0xA9, "gurmukhi"),
        (0xAA, 0xAB, "gujarati"),
        (0xAC, 0xAD, "odia"),
        (0xAE, 0xAF, "tamil"),
        (0xB0, 0xB1, "telugu"),
        (0xB2, 0xB3, "kannada"),
        (0xB4, 0xB5, "malayalam"),
        (0xB6, 0xB7, "sinhala"),
        (0xB8, 0xB9, "thai"),
        (0xBA, 0xBB, "lao"),
        (0xBC, 0xBF, "tibetan"),
    ),
    ByteClass.SOUTHEAST: (
        (0x80, 0x82, "burmese"),
        (0x83, 0x83, "georgian"),
        (0x84, 0x87, "jamo"),
        (0x88, 0x8D, "ethiopic"),
        (0x8E, 0x8F, "cherokee"),
        (0x90, 0x95, "canadian"),
        (0x96, 0x9D, "runic"),
        (0x9E, 0x9F, "khmer"),
        (0xA0, 0xA3, "mongolian"),
        (0xB8, 0xBB, "vietnamese"),
        (0xBC, 0xBF, "polytonic"),
    ),
    ByteClass.TYPOGRAPHIC: (
        (0x80, 0x82, "dash_or_quote"),
        (0x93, 0x95, BOX),
        (0x96, 0x9D, "shape"),
        (0xA0, 0xA3, "braille"),
        (0xB0, 0xBF, "tifinagh"),
    ),
    ByteClass.KANA: ((0x80, 0x82, "hiragana"),),
    ByteClass.HANGUL_FIRST: (
        (0x80, 0x92, "yi"),
        (0x93, 0x9F, "vai"),
        (0xA0, 0xAF, "javanese"),
        (0xB0, 0xBF, "hangul"),
    ),
    ByteClass.FULL_WIDTH: ((0xBA, 0xBF, "full_width"),),
    ByteClass.ASTRAL: (
        (0x90, 0x92, "ancient"),
        (0x93, 0x9D, "math_letter"),
        (0x9E, 0x9F, "emoji"),
    ),
    ByteClass.LATIN_ACCENT: (
        (0x80, 0x9D, "accent_upper"),
        (0xA0, 0xA3, "accent_a"),
        (0xA4, 0xA7, "accent_a_umlaut"),
        (0xA8, 0xAB, "accent_e"),
        (0xAC, 0xAF, "accent_i"),
        (0xB0, 0xB5, "accent_o"),
        (0xB6, 0xB7, "accent_o_umlaut"),
    ),
    ByteClass.GREEK: ((0x90, 0xA9, "greek_upper"),),
    ByteClass.CYRILLIC: (
        (0x80, 0x8F, "cyrillic_other"),
        (0x90, 0xAF, "cyrillic_upper"),
    ),
    ByteClass.CYRILLIC_LATE: (
        (0x80, 0x8F, "cyrillic"),
        (0x90, 0xBF, "cyrillic_other"),
    ),
    ByteClass.HEBREW: (
        (0x80, 0x8F, "hebrew_mark"),
        (0xB0, 0xBF, "hebrew_mark"),
    ),
    ByteClass.ARABIC: (
        (0x80, 0x83, "arabic_83"),
        (0x88, 0x8A, "arabic_88"),
        (0x8B, 0x92, "arabic_mark"),
    ),
    ByteClass.ARABIC_FAR: (
        (0x80, 0x87, "arabic_far_80"),
        (0x8B, 0x8D, "arabic_far_8b"),
        (0xA8, 0xAF, "arabic_far_a8"),
    ),
    # Each language has its own of these letters.
    ByteClass.LATIN_FAR: tuple(
        (first, last, f"latin_far_{first:x}")
        for first, last in (
            (0x80, 0x83),
            (0x84, 0x8A),
            (0x8B, 0x92),
            (0x93, 0x95),
            (0x96, 0x9D),
            (0x9E, 0x9F),
            (0xA0, 0xA9),
            (0xAA, 0xAF),
            (0xB0, 0xB3),
            (0xB4, 0xB9),
            (0xBA, 0xBF),
        )
    ),
}
"""Lead bytes that several scripts share, and scripts whose letters differ in cost by
language or by case. The byte after the lead byte distinguishes them: first and last
value of the byte, and the term. Other values have the term of the lead byte."""

_OF_PAIR = {
    (lead, CLASS_TABLE[trail]): name
    for lead, parts in SPLITS.items()
    for first, last, name in parts
    for trail in range(first, last + 1)
}


def script_of(lead: ByteClass, trail: int) -> str:
    """Return the name of the term for a character.

    Args:
        lead: class of its first byte.
        trail: class of its second byte.
    """
    default = "private_use" if lead is ByteClass.FULL_WIDTH else lead.name.lower()
    return _OF_PAIR.get((lead, trail), default)
