"""Prose as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap

MAX_COLUMNS = 100
"""Longer lines are hard to read, however wide the window."""


def wrap(text: str, indent: int = 0) -> str:
    """Fill the paragraphs of a text again; indented lines stay as they are.

    To the width that ``COLUMNS`` or the terminal says, 80 where neither does; each
    line behind ``indent`` spaces.
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
