"""The terms of the token count, and the pairs of byte classes that each term counts.

Prompt tokens are modeled as linear in these terms, with one coefficient per term and
served model: tokens for a message, a tool, a word's start, a further letter, a digit
after a digit, a Han character. Each term of the text counts certain pairs of byte
classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from itertools import product
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from extproc.routing.arrays import Matrix, Vector
from extproc.routing.byte_classes import (
    CLASS_TABLE,
    CLASSES,
    LOWER_CASE,
    ROW,
    ByteClass,
)
from extproc.routing.request import OptionalKind

_TRAILS = frozenset(range(ByteClass.TRAIL_80, ByteClass.TRAIL_BC + 1))
_LEADS = frozenset(range(ByteClass.LATIN_1, ByteClass.ASTRAL + 1))
_LOWER = frozenset(LOWER_CASE)
_LETTERS = _LOWER | {ByteClass.UPPER}
_MARKS = frozenset(
    {ByteClass.STOP, ByteClass.RULE, ByteClass.BRACKET, ByteClass.SYMBOL}
)

_AFTER_ANY_LETTER = _MARKS | {ByteClass.NEWLINE, ByteClass.DIGIT}

# Scripts by group. In the scripts of one group, the byte before a lead byte has the
# same effect on tokens.
_SCRIPTS = {
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
# Lead bytes that several scripts share, and scripts whose letters differ in cost by
# language or by case. The byte after the lead byte distinguishes them: first and last
# value of the byte, and the term. Other values have the term of the lead byte.
_SPLITS = {
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
        (0x93, 0x95, "box"),
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
_SCRIPT_OF_PAIR = {
    (lead, CLASS_TABLE[trail]): name
    for lead, parts in _SPLITS.items()
    for first, last, name in parts
    for trail in range(first, last + 1)
}

_Rule = Callable[[int, int], str | None]


def _text_term(previous: int, current: int) -> str | None:
    """Return the name of the term that counts ``current`` after ``previous``."""
    if current in _TRAILS:
        if previous not in _LEADS:
            return None  # a character is counted once, at its second byte
        lead = ByteClass(previous)
        return _SCRIPT_OF_PAIR.get((lead, current), _script_of(lead))
    if current in _LEADS:
        return f"{_SCRIPTS[ByteClass(current)]} after {_side_of(previous)}"
    return _ascii_term(previous, ByteClass(current))


def _script_of(lead: ByteClass) -> str:
    return "private_use" if lead is ByteClass.FULL_WIDTH else lead.name.lower()


def _side_of(previous: int) -> str:
    if previous in _LETTERS:
        return "letter"
    if previous == ByteClass.SPACE:
        return "space"
    return "script" if previous in _TRAILS or previous in _LEADS else "other"


def _ascii_term(previous: int, current: ByteClass) -> str:
    if previous in _LOWER and current in _LOWER:
        return f"{current.name.lower()} after {ByteClass(previous).name.lower()}"
    if previous in _TRAILS or previous in _LEADS:
        before = "script"
    elif current == ByteClass.CONTROL and previous != ByteClass.CONTROL:
        before = "other"
    elif previous in _LETTERS and current in _AFTER_ANY_LETTER:
        before = "letter"
    elif previous == ByteClass.CONTROL and current in _MARKS | {ByteClass.DIGIT}:
        before = "newline"
    else:
        before = "lower" if previous in _LOWER else ByteClass(previous).name.lower()
    begins_word = previous == ByteClass.SPACE
    after = current if begins_word or current not in _LOWER else ByteClass.LOWER
    return f"{after.name.lower()} after {before}"


def _tools_term(previous: int, current: int) -> str | None:
    if current in _LETTERS:
        return "tools letter" if previous in _LETTERS else "tools word"
    if current in _TRAILS:
        return None
    match current:
        case ByteClass.BRACKET | ByteClass.STOP | ByteClass.SPACE | ByteClass.DIGIT:
            return f"tools {ByteClass(current).name.lower()}"
        case _:
            return "tools other"


_SCALARS = ("template", "message", "tools", "tool")
"""The first terms, which ``complete`` sets by position."""
_RUNS = ("run of spaces", "run of letters", "run of digits", "run of marks")
_CHARACTER_RUN = "run of characters"
_DERIVED = (
    *_RUNS,
    _CHARACTER_RUN,
    "repetition",
    "foreign letter",
    "foreign word",
)

NO_TERM: Final = 511
"""Index above that of every term."""
_KEYS: Final = NO_TERM + 1


class Places(NamedTuple):
    """The terms that count pairs of byte classes; (a, b) has index ``ROW * a + b``."""

    terms: npt.NDArray[np.uint16]
    """The index of each pair's term, or ``NO_TERM`` if no term counts the pair."""
    cells: npt.NDArray[np.uint16]
    """A number for each pair. Pairs have the same number if they have the same second
    class and the same term, so that counting the numbers counts both. The numbers are
    in the order of the second classes."""
    cell_terms: npt.NDArray[np.intp]
    """The term of each such number."""
    first_cells: npt.NDArray[np.intp]
    """The first such number of each second class."""


def _places(terms: npt.NDArray[np.uint16]) -> Places:
    second = np.minimum(np.arange(ROW * ROW) % ROW, CLASSES - 1)
    keys, cells = np.unique(_KEYS * second + terms, return_inverse=True)
    first_cells = np.searchsorted(keys, _KEYS * np.arange(CLASSES))
    return Places(terms, cells.astype(np.uint16), keys % _KEYS, first_cells)


def _number_terms(rule: _Rule, first: int) -> tuple[list[str], Places]:
    """Number a rule's terms from ``first``."""
    names: list[str] = []
    places = np.full(ROW * ROW, NO_TERM, dtype=np.uint16)
    for previous, current in product(range(CLASSES), repeat=2):
        name = rule(previous, current)
        if name is None:
            continue
        if name not in names:
            names.append(name)
        places[ROW * previous + current] = first + names.index(name)
    return names, _places(places)


_TOOLS_NAMES, TOOLS_PLACES = _number_terms(_tools_term, len(_SCALARS))
_TEXT_NAMES, TEXT_PLACES = _number_terms(_text_term, len(_SCALARS) + len(_TOOLS_NAMES))

TERMS: tuple[str, ...] = (*_SCALARS, *_TOOLS_NAMES, *_TEXT_NAMES, *_DERIVED)
"""Names of the vector elements that have a coefficient in every family."""

SHARE_TERMS = tuple(f"share of {kind.name.lower()}" for kind in OptionalKind)
"""Names of the elements that follow ``TERMS``: tokens of each kind of text that a
template may leave out."""

VECTOR_TERMS = (*TERMS, *SHARE_TERMS)
"""Names of all elements of a prompt's vector."""

TERMS_CHECKSUM = zlib.crc32("\n".join(VECTOR_TERMS).encode())
"""Checksum that distinguishes vectors of these terms from those of other versions."""

_FIRST_TEXT = len(_SCALARS) + len(_TOOLS_NAMES)
_FIRST_RUN = TERMS.index(_RUNS[0])
CHARACTER_RUN = TERMS.index(_CHARACTER_RUN)
REPETITION = TERMS.index("repetition")
INDENT = TERMS.index("space after space")
TOOLS_COUNTED = slice(len(_SCALARS), _FIRST_TEXT)
"""The terms that count bytes of the tool definitions."""
TEXT_COUNTED = slice(_FIRST_TEXT, CHARACTER_RUN + 1)
"""The terms that count bytes of the text, each byte at most once."""

SCRIPT_TERMS = frozenset(
    name
    for name in _TEXT_NAMES
    if " after " not in name or name.partition(" ")[0] in _SCRIPTS.values()
)
"""The terms that count non-ASCII characters."""

# Share of the pairs of adjacent lowercase letters in which both letters are e, t or h:
# 0.07 to 0.12 in English prose, 0.05 to 0.08 in source code, under 0.04 in most other
# languages. Text at or above the first limit is English or code; text below the second
# is not.
_ENGLISH_SHARE = 0.05
_FOREIGN_SHARE = 0.03
# Pairs with English shares that are added to every text, so that short text counts as
# English.
_ASSUMED_PAIRS = 50
_ASSUMED_ETH_PAIRS = 0.07 * _ASSUMED_PAIRS


def _mark_terms(previous: Iterable[int], current: Iterable[int]) -> Vector:
    pairs = np.zeros((ROW, ROW), dtype=bool)
    pairs[np.ix_(list(previous), list(current))] = True
    marked = np.zeros(len(VECTOR_TERMS))
    marked[TEXT_PLACES.terms[pairs.reshape(-1)]] = 1.0
    return marked


_ETH = (ByteClass.LOWER_ET, ByteClass.LOWER_H)

# One row each to sum the pairs of lowercase letters, the starts of lowercase words, and
# the pairs of e, t, h.
_OF_LETTERS: Matrix = np.stack(
    [
        _mark_terms(LOWER_CASE, LOWER_CASE),
        _mark_terms([ByteClass.SPACE], LOWER_CASE),
        _mark_terms(_ETH, _ETH),
    ]
)


def _foreignness(eth_pairs: float, letter_pairs: float) -> float:
    """Return 0 for English, source code and short text, 1 for other languages."""
    share = (eth_pairs + _ASSUMED_ETH_PAIRS) / (letter_pairs + _ASSUMED_PAIRS)
    if share >= _ENGLISH_SHARE:
        return 0.0
    return min(1.0, (_ENGLISH_SHARE - share) / (_ENGLISH_SHARE - _FOREIGN_SHARE))


def complete(vector: Vector, messages: int, tools: int) -> None:
    """Set the terms of a vector that depend on other terms and on the request.

    Args:
        vector: one element for each of ``VECTOR_TERMS``; the counted elements are
            already set, and the others are 0.
        messages: number of chat messages.
        tools: number of tool definitions.
    """
    letters, words, eth_pairs = _OF_LETTERS.dot(vector).tolist()
    foreignness = _foreignness(eth_pairs, letters)
    vector[0], vector[1] = 1.0, messages
    if tools:
        vector[2], vector[3] = 1.0, tools
    if foreignness:
        vector[REPETITION + 1 : len(TERMS)] = foreignness * letters, foreignness * words


_RUN_OF_CLASS = {
    ByteClass.SPACE: 0,
    **dict.fromkeys(_LETTERS, 1),
    ByteClass.DIGIT: 2,
}


def byte_run(byte_class: int) -> tuple[int, int]:
    """Return the term for a run of one byte, and the byte's term outside runs.

    The second is ``NO_TERM`` if such bytes have no term.
    """
    run = _FIRST_RUN + _RUN_OF_CLASS.get(ByteClass(byte_class), 3)
    return run, int(TEXT_PLACES.terms[(ROW + 1) * byte_class])


def character_run(character: bytes) -> tuple[int, int]:
    """Return the terms of a character of several bytes that follows the same character.

    Args:
        character: two to four bytes of UTF-8.
    """
    lead, second, last = (CLASS_TABLE[character[i]] for i in (0, 1, -1))
    return (
        int(TEXT_PLACES.terms[ROW * lead + second]),
        int(TEXT_PLACES.terms[ROW * last + lead]),
    )
