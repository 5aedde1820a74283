"""Generates all kinds of text that clients send; needs only a Python installation.

Prose is taken from the docstrings of the standard library, and code from its sources;
data, digits and other scripts are generated. The caller's seeded random number
generator determines everything.
"""

from __future__ import annotations

import ast
import base64
import csv
import functools
import io
import json
import random
import sysconfig
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from extproc.demo.phrases import CJK, OTHER_SCRIPTS, compose

# Long, well documented modules that every Python installation has.
_MODULES = (
    *("argparse.py", "asyncio/base_events.py", "bisect.py", "collections/__init__.py"),
    *("configparser.py", "csv.py", "difflib.py", "doctest.py", "email/message.py"),
    *("fractions.py", "functools.py", "heapq.py", "http/client.py", "ipaddress.py"),
    *("json/decoder.py", "logging/handlers.py", "mailbox.py", "random.py", "shutil.py"),
    *("socketserver.py", "statistics.py", "subprocess.py", "tempfile.py"),
    *("textwrap.py", "threading.py", "urllib/parse.py", "uuid.py", "zipfile.py"),
)


class Kind(StrEnum):
    """The kind of text in a request."""

    PROSE = "prose"
    CODE = "code"
    CJK = "cjk"
    STRUCTURED = "structured"
    DIGITS = "digits"
    OTHER_SCRIPT = "other_script"
    MIXED = "mixed"


def write(kind: Kind, size_bytes: int, rng: random.Random) -> str:
    """Return about ``size_bytes`` bytes (> 0) of UTF-8 text of a kind."""
    return _WRITERS[kind](size_bytes, rng)


def _prose(size_bytes: int, rng: random.Random) -> str:
    return _collect(_paragraphs(), "\n\n", size_bytes, rng)


def _code(size_bytes: int, rng: random.Random) -> str:
    return _collect(_functions(), "\n\n\n", size_bytes, rng)


def _cjk(size_bytes: int, rng: random.Random) -> str:
    return compose(rng.choice(list(CJK.values())), size_bytes, rng)


def _other_script(size_bytes: int, rng: random.Random) -> str:
    return compose(rng.choice(list(OTHER_SCRIPTS.values())), size_bytes, rng)


def _structured(size_bytes: int, rng: random.Random) -> str:
    records: list[dict[str, object]] = []
    written = 0
    while written < size_bytes:
        records.append(_record(len(records), rng))
        written += len(json.dumps(records[-1]))
    match rng.randrange(3):
        case 0:
            return json.dumps(records, indent=2)
        case 1:
            return json.dumps(records)
        case _:
            return _as_csv(records)


def _digits(size_bytes: int, rng: random.Random) -> str:
    match rng.randrange(3):
        case 0:
            return base64.b64encode(rng.randbytes(size_bytes * 3 // 4)).decode()
        case 1:
            digests = range(max(1, size_bytes // 65))
            return "\n".join(rng.randbytes(32).hex() for _ in digests)
        case _:
            rows = range(max(1, size_bytes // 54))
            return "\n".join(
                " ".join(f"{rng.uniform(0, 1e4):.3f}" for _ in range(6)) for _ in rows
            )


def _mixed(size_bytes: int, rng: random.Random) -> str:
    part = max(1, size_bytes // 3)
    kinds = rng.sample([kind for kind in Kind if kind is not Kind.MIXED], 3)
    return "\n\n".join(write(kind, part, rng) for kind in kinds)


_WRITERS: dict[Kind, Callable[[int, random.Random], str]] = {
    Kind.PROSE: _prose,
    Kind.CODE: _code,
    Kind.CJK: _cjk,
    Kind.STRUCTURED: _structured,
    Kind.DIGITS: _digits,
    Kind.OTHER_SCRIPT: _other_script,
    Kind.MIXED: _mixed,
}


def _record(number: int, rng: random.Random) -> dict[str, object]:
    return {
        "id": number,
        "name": f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}",
        "enabled": rng.random() < 0.7,
        "score": round(rng.random(), 3),
        "region": rng.choice(("eu-west", "us-east", "ap-south")),
        "tags": rng.sample(_NOUNS, rng.randint(1, 3)),
    }


_ADJECTIVES = ("quiet", "green", "early", "plain", "northern", "second", "open")
_NOUNS = ("harbour", "ledger", "signal", "garden", "engine", "archive", "window")


def _as_csv(records: list[dict[str, object]]) -> str:
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        tags = record["tags"]
        assert isinstance(tags, list)
        writer.writerow({**record, "tags": ";".join(tags)})
    return sheet.getvalue()


def _collect(
    pieces: tuple[str, ...], separator: str, size_bytes: int, rng: random.Random
) -> str:
    """Join consecutive pieces from a random start, up to ``size_bytes`` bytes."""
    collected: list[str] = []
    written = 0
    position = rng.randrange(len(pieces))
    while written < size_bytes:
        piece = pieces[position % len(pieces)]
        collected.append(piece)
        written += len(piece.encode()) + len(separator)
        position += 1
    text = separator.join(collected).encode()[:size_bytes]
    return text.decode(errors="ignore")


@functools.cache
def _sources() -> tuple[tuple[str, ast.Module], ...]:
    library = Path(sysconfig.get_path("stdlib"))
    texts = (
        path.read_text("utf-8")
        for path in (library / name for name in _MODULES)
        if path.is_file()
    )
    return tuple((text, ast.parse(text)) for text in texts)


@functools.cache
def _paragraphs() -> tuple[str, ...]:
    """Return the standard library's docstrings of more than 120 characters."""
    return tuple(
        text
        for _, tree in _sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if (text := ast.get_docstring(node)) and len(text) > 120
    )


@functools.cache
def _functions() -> tuple[str, ...]:
    """Return a module's top-level classes and functions."""
    pieces: list[str] = []
    for source, tree in _sources():
        lines = source.splitlines()
        pieces += (
            "\n".join(lines[node.lineno - 1 : node.end_lineno])
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        )
    return tuple(pieces)
