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
from extproc.routing.scripts import BOX, SCRIPT_GROUPS, script_of

_TRAILS = frozenset(range(ByteClass.TRAIL_80, ByteClass.TRAIL_BC + 1))
_LEADS = frozenset(range(ByteClass.LATIN_1, ByteClass.ASTRAL + 1))
_LOWER = frozenset(LOWER_CASE)
_LETTERS = _LOWER | {ByteClass.UPPER}
_MARKS = frozenset(
    {ByteClass.STOP, ByteClass.RULE, ByteClass.BRACKET, ByteClass.SYMBOL}
)

_AFTER_ANY_LETTER = _MARKS | {ByteClass.NEWLINE, ByteClass.DIGIT}

_Rule = Callable[[int, int], str | None]


def _text_term(previous: int, current: int) -> str | None:
    """Return the name of the term that counts ``current`` after ``previous``."""
    if current in _TRAILS:
        if previous not in _LEADS:
            return None  # a character is counted once, at its second byte
        return script_of(ByteClass(previous), current)
    if current in _LEADS:
        return f"{SCRIPT_GROUPS[ByteClass(current)]} after {_side_of(previous)}"
    return _ascii_term(previous, ByteClass(current))


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
    if (" after " not in name or name.partition(" ")[0] in SCRIPT_GROUPS.values())
    and name != BOX
)
"""The terms that count non-ASCII characters. Those for drawing boxes are not among
them: a token contains several, so they cost less than other signs."""

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
