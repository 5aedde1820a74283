"""Categories of prompt text: what the bytes-per-token ratio is keyed by.

Measured on six tokenizers, bytes per token vary by 3 to 15 % within one kind of
text and by a factor of four between kinds: digits, hex and base64 take 1.1 to 2
bytes a token, prose 4.5, other scripts 2 to 9.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from extproc.routing.byte_classes import ByteClass
from extproc.routing.features import Features


class Category(StrEnum):
    """What kind of text a prompt mostly is."""

    PROSE = "prose"
    CODE = "code"
    CJK = "cjk"
    STRUCTURED = "structured"
    DIGITS = "digits"
    OTHER_SCRIPT = "other_script"
    MIXED = "mixed"

    # Enum's own hashes the name, in Python: equal to no string's, and slow in a key.
    __hash__ = str.__hash__


_BUILT_IN = frozenset(str(category) for category in Category)

# Shares of the text's bytes above which a kind of text rules; from the byte
# histograms of prose, source code, JSON, CSV, hex dumps and eleven languages.
_SCRIPT_SHARE = 0.45
_SCRIPT_MIXED_SHARE = 0.15
_LATIN_LEAD_SHARE = 0.012
_DIGIT_SHARE = 0.12
_UNBROKEN_SPACE_SHARE = 0.04
_UNBROKEN_MIN_BYTES = 64
_BRACKET_SHARE = 0.06
_SYMBOL_SHARE = 0.045
_INDENT_SHARE = 0.05


def accepts_hint(hint: str | None, hints: Collection[str] = ()) -> bool:
    """Whether a hint names a built-in category or one of the configured ``hints``.

    Any other hint is ignored, so that clients cannot invent labels.
    """
    return hint is not None and (hint in _BUILT_IN or hint in hints)


def classify(
    features: Features, hint: str | None = None, hints: Collection[str] = ()
) -> str:
    """Name the category of a prompt.

    Args:
        features: the prompt's counts.
        hint: what the client or the route said, if anything.
        hints: the hints accepted beside the built-in categories.
    """
    if hint is not None and accepts_hint(hint, hints):
        return hint
    if features.tools_bytes > features.text_bytes:
        return Category.STRUCTURED
    if features.text_bytes == 0:
        return Category.PROSE
    return _classify_text(features)


def _classify_text(features: Features) -> Category:
    counts = features.classes
    total = features.text_bytes
    script = _classify_script(counts, total)
    if script is not None:
        return script
    digits = counts[ByteClass.DIGIT]
    blanks = counts[ByteClass.SPACE] + counts[ByteClass.NEWLINE]
    if digits > _DIGIT_SHARE * total:
        return Category.DIGITS
    if blanks < _UNBROKEN_SPACE_SHARE * total and total >= _UNBROKEN_MIN_BYTES:
        unbroken_data = counts[ByteClass.BRACKET] > _BRACKET_SHARE * total
        return Category.STRUCTURED if unbroken_data else Category.DIGITS
    if counts[ByteClass.BRACKET] > _BRACKET_SHARE * total:
        return Category.STRUCTURED
    indented = features.indent_bytes
    symbols = counts[ByteClass.SYMBOL] + counts[ByteClass.RULE]
    if (
        symbols > _SYMBOL_SHARE * total
        or indented + counts[ByteClass.CONTROL] > _INDENT_SHARE * total
    ):
        return Category.CODE
    return Category.PROSE


def _classify_script(counts: Sequence[int], total: int) -> Category | None:
    if not any(counts[ByteClass.TRAIL_80 :]):
        return None
    two_byte = sum(counts[ByteClass.GREEK : ByteClass.ARABIC_FAR + 1])
    indic = counts[ByteClass.INDIC] + counts[ByteClass.SOUTHEAST]
    other = 2 * two_byte + 3 * indic + 4 * counts[ByteClass.ASTRAL]
    cjk = 3 * sum(counts[ByteClass.KANA : ByteClass.FULL_WIDTH + 1])
    if cjk > _SCRIPT_SHARE * total:
        return Category.CJK
    if other > _SCRIPT_SHARE * total:
        return Category.OTHER_SCRIPT
    if cjk + other > _SCRIPT_MIXED_SHARE * total:
        return Category.MIXED
    accents = counts[ByteClass.LATIN_ACCENT] + counts[ByteClass.LATIN_FAR]
    if accents > _LATIN_LEAD_SHARE * total:
        # Languages with diacritics take about a fifth more tokens a byte than English.
        return Category.OTHER_SCRIPT
    return None
