"""Categories of prompt text, the keys of the bytes-per-token ratios.

Measured on six tokenizers, bytes per token vary by 3 to 15 % within one kind of
text and by a factor of four between kinds: digits, hex and base64 take 1.1 to 2
bytes a token, prose 4.5, other scripts 2 to 9.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from operator import itemgetter

from extproc.routing.byte_classes import ByteClass
from extproc.routing.features import Features


class Category(StrEnum):
    """The predominant kind of text in a prompt."""

    PROSE = "prose"
    CODE = "code"
    CJK = "cjk"
    STRUCTURED = "structured"
    DIGITS = "digits"
    OTHER_SCRIPT = "other_script"
    MIXED = "mixed"

    # Enum computes its hash in Python from the member's name. That is slow, and the
    # hash differs from that of the equal string.
    __hash__ = str.__hash__


_BUILT_IN = frozenset(str(category) for category in Category)

# Minimum share of the text's bytes at which a kind of text determines the category. The
# values are from byte histograms of prose, source code, JSON, CSV, hex dumps and 11
# languages.
_SCRIPT_SHARE = 0.45
_SCRIPT_MIXED_SHARE = 0.15
_LATIN_LEAD_SHARE = 0.012
_DIGIT_SHARE = 0.12
_UNBROKEN_SPACE_SHARE = 0.04
_UNBROKEN_MIN_BYTES = 64
_BRACKET_SHARE = 0.06
_SYMBOL_SHARE = 0.045
_INDENT_SHARE = 0.05


# The classes of ASCII text that determine its category, in one look-up.
_ascii_counts = itemgetter(
    ByteClass.DIGIT,
    ByteClass.SPACE,
    ByteClass.NEWLINE,
    ByteClass.BRACKET,
    ByteClass.SYMBOL,
    ByteClass.RULE,
    ByteClass.CONTROL,
)


def accepts_hint(hint: str | None, hints: Collection[str] = ()) -> bool:
    """Return whether a hint is a built-in category or one of the configured ``hints``.

    Other hints are ignored, so that clients cannot create labels.
    """
    return hint is not None and (hint in _BUILT_IN or hint in hints)


def classify(
    features: Features, hint: str | None = None, hints: Collection[str] = ()
) -> str:
    """Return the category of a prompt.

    Args:
        features: features of the prompt.
        hint: the category that the client or the route sent, or None.
        hints: accepted hints in addition to the built-in categories.
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
    digits, spaces, newlines, brackets, symbols, rules, controls = _ascii_counts(counts)
    if digits > _DIGIT_SHARE * total:
        return Category.DIGITS
    is_data = brackets > _BRACKET_SHARE * total
    unbroken = spaces + newlines < _UNBROKEN_SPACE_SHARE * total
    if unbroken and total >= _UNBROKEN_MIN_BYTES and not is_data:
        return Category.DIGITS
    if is_data:
        return Category.STRUCTURED
    if (
        symbols + rules > _SYMBOL_SHARE * total
        or features.indent_bytes + controls > _INDENT_SHARE * total
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
        # Languages with diacritics take a fifth more tokens per byte than English.
        return Category.OTHER_SCRIPT
    return None
