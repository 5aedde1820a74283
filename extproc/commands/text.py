"""Parses option values, wraps text for the terminal, and formats JSON."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

MAX_COLUMNS = 100
"""Maximum width; longer lines are hard to read on any terminal."""


def wrap(text: str, indent: int = 0) -> str:
    """Wrap the paragraphs of a text; keep indented lines unchanged.

    The width is that of ``COLUMNS`` or of the terminal, otherwise 80. Each line is
    indented by ``indent`` spaces.
    """
    columns = min(MAX_COLUMNS, shutil.get_terminal_size().columns)
    paragraphs: list[list[str]] = [[]]
    for line in text.strip("\n").splitlines():
        if not line or line[0] == " ":
            paragraphs += [[line], []]
        else:
            paragraphs[-1].append(line)
    return "\n".join(
        each[0]
        if not each[0].strip() or each[0][0] == " "
        else textwrap.fill(
            " ".join(each),
            columns,
            initial_indent=" " * indent,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for each in paragraphs
        if each
    )


def plain_json(document: dict[str, Any]) -> str:
    """Return one line of JSON; raise on NaN, which JSON does not allow."""
    return json.dumps(document, allow_nan=False)


def positive(text: str) -> int:
    """Parse an option's value: a whole number above 0."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected a whole number above 0")
    return int(text)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the parser of an option that accepts one of the given names."""
    choices = names if isinstance(names, tuple) else tuple(names)

    def read(text: str) -> str:
        if text in choices:
            return text
        lower = {name.lower(): name for name in choices}
        near = difflib.get_close_matches(text.lower(), lower, 1, cutoff=0.4)
        advice = (
            f"did you mean {lower[near[0]]}?"
            if near
            else f"expected one of {', '.join(choices)}"
        )
        raise argparse.ArgumentTypeError(f"{text}; {advice}")

    return read


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        expected = "expected a whole number"
        raise argparse.ArgumentTypeError(f"{text}; {expected}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}; expected a number") from None


READERS: dict[object, Callable[[str], object]] = {int: _whole, float: _number}
"""The parser to use in place of each Python type, because argparse's message for a type
contains the type's name instead of the expected form."""
