"""The terms of the token count: a prompt's features as one vector.

Prompt tokens are taken to be linear in these terms, with one coefficient a term and
served model: tokens a message, a tool, a word's start, a further letter, a digit after
a digit, a Han character. A term of the text counts pairs of byte classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extproc.routing.arrays import Matrix, Vector
from extproc.routing.features import CLASSES, LOWER_CASE, ByteClass, Features

_TRAILS = frozenset(range(ByteClass.TRAIL_80, ByteClass.TRAIL_BA + 1))
_LEADS = frozenset(range(ByteClass.LATIN_1, ByteClass.ASTRAL + 1))
_LOWER = frozenset(LOWER_CASE)
_LETTERS = _LOWER | {ByteClass.UPPER}
_MARKS = frozenset(
    {ByteClass.STOP, ByteClass.RULE, ByteClass.BRACKET, ByteClass.SYMBOL}
)

_AFTER_ANY_LETTER = _MARKS | {ByteClass.NEWLINE, ByteClass.DIGIT}

# Scripts whose runs start alike: what a lead byte follows matters per group.
_SCRIPTS = {
    ByteClass.LATIN_1: "latin",
    ByteClass.LATIN_ACCENT: "latin",
    ByteClass.LATIN_FAR: "latin",
    ByteClass.COMBINING: "latin",
    ByteClass.SOUTHEAST: "latin",
    ByteClass.GREEK: "alphabet",
    ByteClass.CYRILLIC: "alphabet",
    ByteClass.CYRILLIC_FAR: "alphabet",
    ByteClass.ARMENIAN: "alphabet",
    ByteClass.HEBREW: "alphabet",
    ByteClass.ARABIC: "alphabet",
    ByteClass.ARABIC_FAR: "alphabet",
    ByteClass.INDIC: "indic",
    ByteClass.KANA: "cjk",
    ByteClass.HAN: "cjk",
    ByteClass.FULL_WIDTH: "cjk",
    ByteClass.HANGUL: "hangul",
    ByteClass.TYPOGRAPHIC: "sign",
    ByteClass.ASTRAL: "sign",
}
# Lead bytes that span scripts are told apart by the next byte.
_SPLITS = {
    (ByteClass.INDIC, ByteClass.TRAIL_A0): "devanagari",
    (ByteClass.INDIC, ByteClass.TRAIL_A4): "devanagari",
    (ByteClass.INDIC, ByteClass.TRAIL_A6): "bengali",
    (ByteClass.INDIC, ByteClass.TRAIL_A8): "gujarati_tamil",
    (ByteClass.INDIC, ByteClass.TRAIL_B0): "telugu_sinhala",
    (ByteClass.INDIC, ByteClass.TRAIL_B8): "thai",
    (ByteClass.INDIC, ByteClass.TRAIL_BA): "lao_tibetan",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_80): "burmese",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_83): "georgian",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_8B): "ethiopic",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_90): "ethiopic",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_93): "canadian",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_9E): "khmer",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_B8): "vietnamese",
    (ByteClass.SOUTHEAST, ByteClass.TRAIL_BA): "vietnamese",
    (ByteClass.ARABIC, ByteClass.TRAIL_8B): "arabic_mark",
    (ByteClass.ARABIC, ByteClass.TRAIL_90): "arabic_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_80): "hebrew_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_83): "hebrew_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_8B): "hebrew_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_B0): "hebrew_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_B8): "hebrew_mark",
    (ByteClass.HEBREW, ByteClass.TRAIL_BA): "hebrew_mark",
    (ByteClass.TYPOGRAPHIC, ByteClass.TRAIL_80): "dash_or_quote",
    (ByteClass.KANA, ByteClass.TRAIL_80): "hiragana",
    (ByteClass.ASTRAL, ByteClass.TRAIL_9E): "emoji",
    (ByteClass.FULL_WIDTH, ByteClass.TRAIL_BA): "full_width",
}

_Rule = Callable[[int, int], str | None]


def _text_term(previous: int, current: int) -> str | None:
    """Name the term that counts ``current`` after ``previous``, or None."""
    if current in _TRAILS:
        if previous not in _LEADS:
            return None  # a character is counted once, at its second byte
        lead, trail = ByteClass(previous), ByteClass(current)
        return _SPLITS.get((lead, trail), _script_of(lead))
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
_DERIVED = ("run", "repetition", "foreign letter", "foreign word")


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

_FIRST_DERIVED = len(_SCALARS) + len(_TOOLS_NAMES) + len(_TEXT_NAMES)

TERMS: tuple[str, ...] = (*_SCALARS, *_TOOLS_NAMES, *_TEXT_NAMES, *_DERIVED)
"""Name of each element of a vector."""

SCRIPT_TERMS = frozenset(
    name
    for name in _TEXT_NAMES
    if " after " not in name or name.partition(" ")[0] in _SCRIPTS.values()
)
"""The terms that count characters beyond ASCII."""

# For each pair its term; the element behind the last one for pairs without a term.
_TEXT_PLACE = np.where(_TEXT_INDEX > 0, _TEXT_INDEX, len(TERMS))
_TOOLS_PLACE = np.where(_TOOLS_INDEX > 0, _TOOLS_INDEX, len(TERMS))

# Share of the pairs of small letters that are pairs of e, t, h: 0.07 to 0.12 in English
# prose, 0.05 to 0.08 in source code, under 0.04 in most other languages. Text at or
# above the first is English or code, text below the second is not.
_ENGLISH_SHARE = 0.05
_FOREIGN_SHARE = 0.03
# Pairs as in English that short text is taken to have besides its own.
_ASSUMED_PAIRS = 50
_ASSUMED_ETH_PAIRS = 0.07 * _ASSUMED_PAIRS

_ETH_PAIR = CLASSES * ByteClass.LOWER_ETH + ByteClass.LOWER_ETH


def _mark_pairs(previous: Iterable[int], current: Iterable[int]) -> Vector:
    marked = np.zeros((CLASSES, CLASSES))
    marked[np.ix_(list(previous), list(current))] = 1.0
    return marked.reshape(-1)


def _mark_terms(pairs: Vector) -> Vector:
    marked = np.zeros(len(TERMS))
    marked[_TEXT_INDEX[pairs > 0]] = 1.0
    return marked


_LETTER_PAIRS = _mark_pairs(LOWER_CASE, LOWER_CASE)
_WORD_PAIRS = _mark_pairs([ByteClass.SPACE], LOWER_CASE)


_LETTER_TERMS = _mark_terms(_LETTER_PAIRS)
_WORD_TERMS = _mark_terms(_WORD_PAIRS)
_ETH_TERM = int(_TEXT_INDEX[_ETH_PAIR])


def _foreignness(eth_pairs: float, letter_pairs: float) -> float:
    """Return 0 for English, source code and short text, 1 for other languages."""
    share = (eth_pairs + _ASSUMED_ETH_PAIRS) / (letter_pairs + _ASSUMED_PAIRS)
    excess = (_ENGLISH_SHARE - share) / (_ENGLISH_SHARE - _FOREIGN_SHARE)
    return min(1.0, max(0.0, excess))


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
    run: float
    repetition: float
    foreign_letter: float
    foreign_word: float
    text_rows: Matrix
    """By pair: the coefficients of text; letter pairs; word starts."""
    tools_pairs: Vector

    @property
    def text_pairs(self) -> Vector:
        """Tokens of each pair of the text."""
        pairs: Vector = self.text_rows[0]
        return pairs

    def total(self, features: Features) -> float:
        """Return the sum of a prompt's terms, each times its coefficient."""
        text, letters, words = self.text_rows.dot(
            features.pairs.astype(np.float64)
        ).tolist()
        total: float = self.template + self.message * features.messages + text
        eth_pairs = int(features.pairs[_ETH_PAIR])
        for byte_class, size in features.runs:
            # The bytes of a run have a term of their own instead of their pair's.
            total += size * (self.run - float(self.text_pairs[_run_pair(byte_class)]))
            letters -= size * (byte_class in LOWER_CASE)
            eth_pairs -= size * (byte_class == ByteClass.LOWER_ETH)
        foreignness = _foreignness(eth_pairs, letters)
        if foreignness:
            foreign = self.foreign_letter * letters + self.foreign_word * words
            total += foreignness * foreign
        if features.tools:
            total += self.tools + self.tool * features.tools
        if features.tools_bytes:
            counts = features.tools_pairs.astype(np.float64)
            total += float(counts.dot(self.tools_pairs))
        return total + self.repetition * features.repetitions


def weigh(coefficients: Vector) -> Weights:
    """Lay out one coefficient for each of ``TERMS``."""
    padded = np.append(coefficients, 0.0)
    text = np.stack([padded[_TEXT_PLACE], _LETTER_PAIRS, _WORD_PAIRS])
    template, message, tools, tool = coefficients[: len(_SCALARS)].tolist()
    run, repetition, letter, word = coefficients[_FIRST_DERIVED:].tolist()
    return Weights(
        template,
        message,
        tools,
        tool,
        run,
        repetition,
        letter,
        word,
        text,
        padded[_TOOLS_PLACE],
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
    run = 0
    for byte_class, run_bytes in features.runs:
        vector[_TEXT_INDEX[_run_pair(byte_class)]] -= run_bytes
        run += run_bytes
    terms = vector[: len(TERMS)]
    letters = float(terms.dot(_LETTER_TERMS))
    words = float(terms.dot(_WORD_TERMS))
    foreignness = _foreignness(float(vector[_ETH_TERM]), letters)
    vector[: len(_SCALARS)] = (
        1.0,
        features.messages,
        features.tools > 0,
        features.tools,
    )
    terms[_FIRST_DERIVED:] = (
        run,
        features.repetitions,
        foreignness * letters,
        foreignness * words,
    )
    return vector


def _run_pair(byte_class: int) -> int:
    return (CLASSES + 1) * byte_class
