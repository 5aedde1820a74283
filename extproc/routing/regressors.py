"""The terms of the token count: a prompt's features as one vector.

Prompt tokens are taken to be linear in these terms, with one coefficient a term and
served model: tokens a message, a tool, a word's start, a further letter, a digit after
a digit, a Han character. A term of the text counts pairs of byte classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extproc.routing.arrays import Vector
from extproc.routing.features import CLASSES, ByteClass, Features

_TRAILS = frozenset(range(ByteClass.TRAIL_8, ByteClass.TRAIL_B + 1))
_LEADS = frozenset(range(ByteClass.LATIN_1, ByteClass.ASTRAL + 1))
_LETTERS = frozenset({ByteClass.LOWER, ByteClass.UPPER})
_MARKS = frozenset(
    {ByteClass.STOP, ByteClass.RULE, ByteClass.BRACKET, ByteClass.SYMBOL}
)

_AFTER_ANY_LETTER = _MARKS | {ByteClass.NEWLINE, ByteClass.DIGIT}

# Scripts whose runs start alike: what a lead byte follows matters per group.
_SCRIPTS = {
    ByteClass.LATIN_1: "latin",
    ByteClass.LATIN_ACCENT: "latin",
    ByteClass.LATIN_FAR: "latin",
    ByteClass.SOUTHEAST: "latin",
    ByteClass.GREEK: "alphabet",
    ByteClass.CYRILLIC: "alphabet",
    ByteClass.HEBREW: "alphabet",
    ByteClass.ARABIC: "alphabet",
    ByteClass.INDIC: "indic",
    ByteClass.KANA: "cjk",
    ByteClass.HAN: "cjk",
    ByteClass.FULL_WIDTH: "cjk",
    ByteClass.HANGUL: "hangul",
    ByteClass.TYPOGRAPHIC: "sign",
    ByteClass.ASTRAL: "sign",
}
# Lead bytes that span scripts are told apart by the next byte's high nibble.
_SPLITS = {
    (ByteClass.INDIC, ByteClass.TRAIL_B): "thai",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_B): "vietnamese",
    (ByteClass.TYPOGRAPHIC, ByteClass.TRAIL_8): "dash_or_quote",
    (ByteClass.KANA, ByteClass.TRAIL_8): "hiragana",
}

_Rule = Callable[[int, int], str | None]


def _text_term(previous: int, current: int) -> str | None:
    """Name the term that counts ``current`` after ``previous``, or None."""
    if current > ByteClass.ASTRAL or previous > ByteClass.ASTRAL:
        return None
    if current in _TRAILS:
        if previous not in _LEADS:
            return None  # a character is counted once, at its second byte
        lead, trail = ByteClass(previous), ByteClass(current)
        return _SPLITS.get((lead, trail), lead.name.lower())
    if current in _LEADS:
        return f"{_SCRIPTS[ByteClass(current)]} after {_side_of(previous)}"
    return _ascii_term(previous, ByteClass(current))


def _side_of(previous: int) -> str:
    if previous in _LETTERS:
        return "letter"
    if previous == ByteClass.SPACE:
        return "space"
    return "script" if previous in _TRAILS or previous in _LEADS else "other"


def _ascii_term(previous: int, current: ByteClass) -> str:
    if previous in _TRAILS or previous in _LEADS:
        before = "script"
    elif current == ByteClass.CONTROL and previous != ByteClass.CONTROL:
        before = "other"
    elif previous in _LETTERS and current in _AFTER_ANY_LETTER:
        before = "letter"
    elif previous == ByteClass.CONTROL and current in _MARKS | {ByteClass.DIGIT}:
        before = "newline"
    else:
        before = ByteClass(previous).name.lower()
    return f"{current.name.lower()} after {before}"


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


def _number_terms(rule: _Rule, first: int) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Number a rule's terms from ``first``; pairs that it does not count get 0."""
    names: list[str] = []
    index = np.zeros(CLASSES * CLASSES, dtype=np.intp)
    for pair in range(CLASSES * CLASSES):
        name = rule(*divmod(pair, CLASSES))
        if name is None:
            continue
        if name not in names:
            names.append(name)
        index[pair] = first + names.index(name)
    return names, index


_TOOLS_NAMES, _TOOLS_INDEX = _number_terms(_tools_term, len(_SCALARS))
_TEXT_NAMES, _TEXT_INDEX = _number_terms(_text_term, len(_SCALARS) + len(_TOOLS_NAMES))

TERMS: tuple[str, ...] = (*_SCALARS, *_TOOLS_NAMES, *_TEXT_NAMES)
"""Name of each element of a vector."""


# For each pair its term, or what lies behind the last one: nothing.
_TEXT_PLACE = np.where(_TEXT_INDEX > 0, _TEXT_INDEX, len(TERMS))
_TOOLS_PLACE = np.where(_TOOLS_INDEX > 0, _TOOLS_INDEX, len(TERMS))


@dataclass(frozen=True, slots=True)
class Weights:
    """Coefficients laid out by pair: their sum over a prompt takes one product.

    ``weigh(c).total(f)`` is ``vectorize(f) @ c``, but for rounding, in a fifth of
    the time.
    """

    template: float
    message: float
    tools: float
    tool: float
    text_pairs: Vector
    tools_pairs: Vector

    def total(self, features: Features) -> float:
        """Return the sum of a prompt's terms, each times its coefficient."""
        total = self.template + self.message * features.messages
        total += float(features.pairs.astype(np.float64).dot(self.text_pairs))
        if features.tools:
            total += self.tools + self.tool * features.tools
        if features.tools_bytes:
            counts = features.tools_pairs.astype(np.float64)
            total += float(counts.dot(self.tools_pairs))
        return total


def weigh(coefficients: Vector) -> Weights:
    """Lay out one coefficient for each of ``TERMS``."""
    padded = np.append(coefficients, 0.0)
    template, message, tools, tool = coefficients[: len(_SCALARS)].tolist()
    return Weights(
        template, message, tools, tool, padded[_TEXT_PLACE], padded[_TOOLS_PLACE]
    )


def vectorize(features: Features, room: int = 0) -> Vector:
    """Return the counts of ``TERMS`` in a prompt.

    Args:
        features: of the prompt.
        room: zeros to append, for terms of the caller's own.
    """
    size = len(TERMS) + room
    vector: Vector = np.bincount(
        _TEXT_INDEX, weights=features.pairs, minlength=size
    ).astype(np.float64, copy=False)
    if features.tools_bytes:
        vector += np.bincount(
            _TOOLS_INDEX, weights=features.tools_pairs, minlength=size
        )
    vector[0] = 1.0
    vector[1] = features.messages
    vector[2] = features.tools > 0
    vector[3] = features.tools
    return vector
