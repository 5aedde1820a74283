"""Reads token counts of an operator's traffic: CSV, JSON lines, traces, access logs.

One module reads all formats (``record_files``), and two find the fields of a record
(``record_fields``, ``record_instants``). This module makes a workload from the records.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from extproc.fleet.record_fields import (
    FieldError,
    Level,
    find_counts,
    find_hash_ids,
    find_session,
    find_turn,
    levels,
)
from extproc.fleet.record_files import TraceFormatError, expected_columns, read_rows
from extproc.fleet.record_instants import find_instant, unit_of
from extproc.fleet.workload import Recorded, Seconds, Workload
from extproc.json_object import JsonObject

__all__ = ["Records", "TraceFormatError", "few_records", "read_records"]

#: A quantile is estimated only if at least this number of records is beyond it. With
#: this number, the standard error is about a third of the probability beyond the
#: quantile (a binomial count of 10 +- 3.2).
RECORDS_BEYOND = 10
#: Maximum number of keys in an error message, since a record may have hundreds.
_MAX_KEYS = 20
#: Possible tokens per hash: 512 for Mooncake, 16 for Bailian, and sizes of other
#: engines.
_BLOCK_TOKENS = (512, 16, 32, 64, 128, 256, 1024)


@dataclass(frozen=True, slots=True)
class Records:
    """The content of a file, and the number of records left out."""

    workload: Workload
    read: int
    skipped: int
    """Number of records without usable counts: failed requests, streams without usage.
    """
    notes: tuple[str, ...] = ()
    """Messages for the operator, one line each: the unit of the times, missing fields,
    too few records."""


#: Minimum number of records for estimating the median, so that ten are on each side.
LEAST_RECORDS = 2 * RECORDS_BEYOND


def few_records(records: int, quantile: float = 0.99) -> str | None:
    """Return a warning if there are too few records for a quantile, otherwise None.

    Args:
        records: number of usable records, >= 1.
        quantile: quantile of the SLO, in (0, 1).
    """
    wanted = round(RECORDS_BEYOND / (1 - quantile))
    if records >= wanted:
        return None
    highest = 1 - RECORDS_BEYOND / records
    carried = f"they carry P{100 * highest:.0f} at most" if highest >= 0.5 else (
        "they carry not even a median"
    )  # fmt: skip
    return (
        f"{records:,} records are few: {records * (1 - quantile):.2g} of them lie "
        f"beyond a P{100 * quantile:g}, {carried}; expected at least {wanted:,}"
    )


class _Columns:
    """The usable records so far, as columns."""

    def __init__(self) -> None:
        self.prompts = array("q")
        self.outputs = array("q")
        self.cached = array("q")
        self.instants = array("d")
        self.units: set[float | None] = set()
        self.hash_ids: list[tuple[int, ...] | None] = []
        self.sessions: list[str | None] = []
        self.turns: list[tuple[str, str] | None] = []
        self.hashed = False
        self.recorded = False

    def take(self, record: Sequence[Level]) -> bool:
        """Add a record; return False if it has no usable counts."""
        counts = find_counts(record)
        if counts is None or not counts.prompt or not counts.completion:
            return False
        instant = find_instant(record)
        self.prompts.append(counts.prompt)
        self.outputs.append(counts.completion)
        self.cached.append(-1 if counts.cached is None else counts.cached)
        if instant is not None:
            self.instants.append(instant.value)
            self.units.add(instant.unit_s)
        self.hash_ids.append(find_hash_ids(record))
        self.sessions.append(find_session(record))
        self.turns.append(find_turn(record))
        self.recorded |= "truncated" in record[0] and "attempts" in record[0]
        self.hashed |= any("inputlength" in level for level in record)
        return True


def read_records(lines: Iterable[str], name: str) -> Records:
    """Read CSV with a header, JSON lines, or a JSON document of records.

    Args:
        lines: text lines of the file.
        name: name of the workload, and of the file in errors.

    Raises:
        TraceFormatError: neither the header nor any record has prompt and output
            tokens, or a line is neither a header nor a record.
    """
    columns = _Columns()
    seen: dict[str, None] = {}
    read = 0
    runs: set[str] = set()
    for row in read_rows(lines, name):
        read += 1
        record = levels(row.fields)
        if len(seen) < _MAX_KEYS:
            seen.update(dict.fromkeys(_key_paths(row.fields)))
        try:
            if columns.take(record):
                runs.add(row.run)
        except FieldError as error:
            raise TraceFormatError(f"{row.where}: {error}") from error
    if not columns.prompts:
        raise TraceFormatError(
            f"{name}: none of {read} records has both counts; found "
            f"{', '.join(list(seen)[:_MAX_KEYS]) or 'no keys'}; expected "
            f"{expected_columns()}"
        )
    return _records(columns, name, read, len(runs))


def _key_paths(fields: JsonObject, prefix: str = "", depth: int = 0) -> list[str]:
    paths = []
    for key, value in fields.items():
        if isinstance(value, dict) and depth < 2:
            paths += _key_paths(value, f"{prefix}{key}.", depth + 1)
        else:
            paths.append(f"{prefix}{key}")
    return paths


def _records(columns: _Columns, name: str, read: int, runs: int) -> Records:
    usable = len(columns.prompts)
    prompts, outputs = np.array(columns.prompts), np.array(columns.outputs)
    arrivals, notes = _arrivals(columns, runs)
    order = (
        np.arange(usable) if arrivals is None else np.argsort(arrivals, kind="stable")
    )
    cached = np.array(columns.cached)[order]
    hash_ids = _complete([columns.hash_ids[row] for row in order])
    sessions = _sessions(columns)
    few = few_records(usable)
    workload = Workload(
        name,
        Recorded(prompts[order], outputs[order]),
        f"{usable:,} records of {name}",
        arrivals=None if arrivals is None else arrivals[order],
        cached_tokens=None if (cached < 0).all() else np.maximum(cached, 0),
        hash_ids=hash_ids,
        hash_block_tokens=_block_tokens(hash_ids, prompts[order].tolist()),
        sessions=None if sessions is None else tuple(sessions[row] for row in order),
    )
    return Records(workload, read, read - usable, (*notes, *([few] if few else [])))


def _arrivals(columns: _Columns, runs: int) -> tuple[Seconds | None, list[str]]:
    """Return seconds since the first arrival, in the file's order, and notes."""
    usable, timed = len(columns.prompts), len(columns.instants)
    if not timed:
        return None, []
    if timed < usable:
        return None, [
            f"{usable - timed:,} of {usable:,} records have no instant: none is used"
        ]
    if runs > 1:
        return None, [
            f"{runs} runs in one file, each at its own rate: no instant is used"
        ]
    if len(columns.units) > 1:
        return None, ["instants in more than one unit: none is used"]
    values = np.array(columns.instants)
    (named,) = columns.units
    unit = unit_of(
        values,
        named,
        hashed=columns.hashed,
        chained=any(turn is not None for turn in columns.turns),
    )
    seconds = values * unit.seconds
    said = [f"instants: {unit.reason}"]
    if columns.recorded:
        said.append("instants: of the ends of the answers, as the server records them")
    return seconds - seconds.min(), said


def _complete(
    hash_ids: list[tuple[int, ...] | None],
) -> tuple[tuple[int, ...], ...] | None:
    """Return the hashes of all records, or None if no record has any."""
    if all(ids is None for ids in hash_ids):
        return None
    return tuple(ids or () for ids in hash_ids)


def _block_tokens(
    hash_ids: tuple[tuple[int, ...], ...] | None, prompts: Sequence[int]
) -> int | None:
    """Return the tokens per hash, which is the size that matches most prompts."""
    if hash_ids is None:
        return None

    def fitting(size: int) -> int:
        return sum(
            len(ids) in (prompt // size, -(-prompt // size))
            for ids, prompt in zip(hash_ids, prompts, strict=True)
        )

    return max(_BLOCK_TOKENS, key=fitting)


def _sessions(columns: _Columns) -> list[str | None] | None:
    """Return each record's conversation; a chain is named by its first request."""
    parents = dict(turn for turn in columns.turns if turn is not None)
    found = [
        session if turn is None else _root(turn[0], parents)
        for session, turn in zip(columns.sessions, columns.turns, strict=True)
    ]
    return None if all(session is None for session in found) else found


def _root(request: str, parents: dict[str, str]) -> str:
    followed = {request}
    while (parent := parents.get(request, "-1")) != "-1" and parent not in followed:
        followed.add(parent)
        request = parent
    return request
