"""Reads records from CSV in common dialects, JSON lines, arrays or printed objects."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from extproc.fleet.record_fields import JSON_CELLS, knows_counts, levels, plain
from extproc.json_object import JsonObject


class Row(NamedTuple):
    """A record with its position for error messages, its fields, and its run.

    The run identifies one of several results in a load generator's file, each at a
    different rate; it is "" in other files.
    """

    where: str
    fields: JsonObject
    run: str = ""


_DELIMITERS = (",", ";", "\t", "|")
#: Keys that no record with counts has. GuideLLM sorts its requests into successful,
#: incomplete and errored; only successful requests have complete answers.
_DOCUMENT_KEYS = frozenset(
    {"benchmarks", "successful", "resourcespans", "scopespans", "spans"}
)
#: Keys under which a document contains its records, if it has no counts itself.
_ENVELOPES = frozenset(
    {
        "requests",
        "data",
        "results",
        "records",
        "items",
        "rows",
        "logs",
        "entries",
        "hits",
        "source",
    }
)
_DEPTH = 6
#: A field can contain a whole prompt, but csv rejects 128 KiB and more by default.
_MAX_FIELD_CHARS = 1 << 30
_ENVOY_TEXT = re.compile(r'\[\d{4}-\d\d-\d\dT[^\]]*\] "')


class TraceFormatError(ValueError):
    """An unreadable file of records; the message has name, line and reason."""


def read_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Split a file into records.

    Raises:
        TraceFormatError: the file is empty, is neither CSV nor JSON, or lacks required
            columns.
    """
    rows = iter(lines)
    number, first = 0, ""
    for line in rows:
        number += 1
        first = line.removeprefix("\ufeff")
        if first.strip() and not first.startswith(("#", "sep=")):
            break
    else:
        raise TraceFormatError(
            f"{name}: empty; expected CSV with a header, JSON lines or a JSON document"
        )
    if _ENVOY_TEXT.match(first):
        raise TraceFormatError(
            f"{name}: an Envoy access log as text, which has no token counts; expected "
            "one in JSON with the usage metadata in it"
        )
    if first.lstrip()[:1] in ("{", "["):
        return _json_rows(first, rows, number, name)
    return _csv_rows(first, rows, number, name)


def _csv_rows(
    header: str, rows: Iterator[str], number: int, name: str
) -> Iterator[Row]:
    delimiter, columns = _dialect(header)
    has_prompt, has_output = knows_counts(columns)
    may_hold_json = any(plain(column) in JSON_CELLS for column in columns)
    if not (has_prompt and has_output) and not may_hold_json:
        raise TraceFormatError(
            f"{name}: columns {', '.join(columns)}; expected "
            + expected_columns(prompt=not has_prompt, output=not has_output)
        )
    csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.reader(rows, delimiter=delimiter)
    try:
        for row in reader:
            if row:
                where = f"{name}: line {number + reader.line_num}"
                yield Row(where, dict(zip(columns, row, strict=False)))
    except csv.Error as error:
        raise TraceFormatError(
            f"{name}: line {number + reader.line_num}: not CSV ({error})"
        ) from error


def _dialect(header: str) -> tuple[str, list[str]]:
    """Return the delimiter that yields most count columns, then most columns."""

    def columns(delimiter: str) -> list[str]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return [name.strip() for name in names]

    best = max(
        _DELIMITERS,
        key=lambda delimiter: (
            sum(knows_counts(columns(delimiter))),
            len(columns(delimiter)),
        ),
    )
    return best, columns(best)


def expected_columns(*, prompt: bool = True, output: bool = True) -> str:
    """Return the most common names of the columns that a file lacks."""
    wanted = []
    if prompt:
        wanted.append("prompt tokens (prompt_tokens, ContextTokens or the like)")
    if output:
        wanted.append("output tokens (completion_tokens, GeneratedTokens)")
    return " and ".join(wanted)


def _json_rows(
    first: str, rows: Iterator[str], number: int, name: str
) -> Iterator[Row]:
    try:
        json.loads(first)
    except ValueError:
        # The text is not one value per line, but an array or objects over several
        # lines.
        return _printed_rows("".join(_whole_lines(first, rows)), number, name)
    return _line_rows(itertools.chain([first], rows), number, name)


def _whole_lines(first: str, rows: Iterator[str]) -> Iterator[str]:
    for line in itertools.chain([first], rows):
        yield line if line.endswith("\n") else line + "\n"


def _line_rows(rows: Iterable[str], first: int, name: str) -> Iterator[Row]:
    for number, line in enumerate(rows, first):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceFormatError(f"{where}: not JSON ({error})") from error
        yield from _records(value, where)


def _printed_rows(text: str, first: int, name: str) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    at, end = 0, len(text.rstrip())
    while at < end:
        if text[at].isspace() or text[at] == ",":
            at += 1
            continue
        try:
            value, after = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = first + text.count("\n", 0, getattr(error, "pos", at))
            raise TraceFormatError(
                f"{name}: line {line}: not JSON ({error})"
            ) from error
        yield from _records(value, f"{name}: line {first + text.count(chr(10), 0, at)}")
        at = after


def _records(value: Any, where: str, run: str = "", depth: int = 0) -> Iterator[Row]:
    """Yield the records of a JSON value: itself, its elements, or its contents."""
    if isinstance(value, list):
        for index, item in enumerate(value, 1):
            yield from _records(item, f"{where}: record {index}", run, depth)
        return
    if not isinstance(value, dict):
        raise TraceFormatError(
            f"{where}: {json.dumps(value)[:40]}; expected an object, or an array of "
            "objects"
        )
    columns = _columns(value)
    if columns:
        for index, cells in enumerate(zip(*columns.values(), strict=True), 1):
            fields = dict(zip(columns, cells, strict=True))
            yield Row(f"{where}: record {index}", fields, run or where)
        return
    # Each set of GuideLLM's requests belongs to one benchmark, which is one run.
    inner = [] if depth == _DEPTH else _enveloped(value)
    for part in inner:
        own_run = run or (where if "successful" in value else "")
        yield from _records(part, where, own_run, depth + 1)
    if not inner:
        yield Row(where, value, run)


def _columns(value: JsonObject) -> dict[str, list[Any]]:
    """Return equally long columns, as ``vllm bench serve --save-detailed`` writes."""
    lists = {key: column for key, column in value.items() if isinstance(column, list)}
    if not all(knows_counts(list(lists))):
        return {}
    length = next(len(lists[key]) for key in lists if any(knows_counts([key])))
    return {key: column for key, column in lists.items() if len(column) == length}


def _enveloped(value: JsonObject) -> list[Any]:
    """Return a document's values that contain records; none if it is a record."""
    parts = {
        plain(key): part
        for key, part in value.items()
        if isinstance(part, dict)
        or (isinstance(part, list) and part and isinstance(part[0], dict))
    }
    if not parts:
        return []
    certain = [
        part
        for key, part in parts.items()
        if key in _DOCUMENT_KEYS or (isinstance(part, dict) and "successful" in part)
    ]
    if certain or any(all(knows_counts(list(level))) for level in levels(value)):
        return certain
    return [part for key, part in parts.items() if key in _ENVELOPES]
