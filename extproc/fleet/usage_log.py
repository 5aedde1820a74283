"""Token counts of an operator's own traffic: CSV, JSON lines, traces, access logs.

One reader for all of them: a record is a mapping, and its counts go by many names.
Nested records (a replay log's ``usage``, an access log's metadata) are searched level
by level.
"""

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from extproc.fleet.workload import Recorded, Workload

# Names in order of preference, compared without case, "_", "-", "." and spaces.
_PROMPT = (
    "prompttokens",
    "contexttokens",
    "inputtokens",
    "numprompttokens",
    "inputlength",
)
_OUTPUT = (
    "completiontokens",
    "generatedtokens",
    "outputtokens",
    "numgenerationtokens",
    "outputlength",
)
_TIME = ("time", "timestamp", "arrivaltime", "times", "starttime", "arrivals")
_DEPTH = 4


class TraceFormatError(ValueError):
    """A file of records that cannot be read, by name, line and reason."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a file held, and what of it had to be left out.

    Attributes:
        skipped: records without usable counts: failed requests, streams without usage.
    """

    workload: Workload
    read: int
    skipped: int


def read_records(lines: Iterable[str], name: str) -> Records:
    """Read CSV with a header, or JSON lines; which of them, the first line tells.

    Args:
        lines: text lines of the file.
        name: what to call the workload, and the file in errors.

    Raises:
        TraceFormatError: no header or record with prompt and output tokens, or a line
            that is neither.
    """
    rows = iter(lines)
    first = next((line for line in rows if line.strip()), None)
    if first is None:
        raise TraceFormatError(
            f"{name}: empty, expected CSV with a header or JSON lines"
        )
    first = first.removeprefix("\ufeff")
    if first.lstrip().startswith("{"):
        records = _json_records(first, rows, name)
    else:
        records = _csv_records(first, rows, name)
    prompts: list[int] = []
    outputs: list[int] = []
    times: list[float] = []
    read = 0
    for where, record in records:
        read += 1
        if "usage" in record and isinstance(record.get("decision"), dict):
            # A recording of the server: what it estimated is no count.
            record = {key: record[key] for key in record if key != "decision"}
        prompt = _count(_find(record, _PROMPT), where)
        output = _count(_find(record, _OUTPUT), where)
        if not prompt or not output:
            continue
        prompts.append(prompt)
        outputs.append(output)
        instant = _seconds(_find(record, _TIME), where)
        if instant is not None:
            times.append(instant)
    if not prompts:
        raise TraceFormatError(
            f"{name}: none of {read} records has prompt and output tokens; expected "
            "columns or keys like prompt_tokens and completion_tokens, or Azure's "
            "ContextTokens and GeneratedTokens"
        )
    arrivals = np.array(times) if len(times) == len(prompts) else None
    workload = Workload(
        name,
        Recorded(np.array(prompts), np.array(outputs)),
        f"{len(prompts):,} records of {name}",
        arrivals=arrivals - arrivals.min() if arrivals is not None else None,
    )
    return Records(workload, read, read - len(prompts))


def _csv_records(
    header: str, rows: Iterator[str], name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    columns = next(csv.reader([header]))
    known = {_plain(column) for column in columns}
    for wanted in (_PROMPT, _OUTPUT):
        if not known & set(wanted):
            raise TraceFormatError(
                f"{name}: columns {', '.join(columns)}, expected one of "
                f"{', '.join(wanted[:3])} (any case, any separator)"
            )
    for number, row in enumerate(csv.reader(rows), 2):
        if row:
            yield f"{name}: line {number}", dict(zip(columns, row, strict=False))


def _json_records(
    first: str, rows: Iterator[str], name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    def numbered() -> Iterator[tuple[int, str]]:
        yield 1, first
        yield from enumerate(rows, 2)

    for number, line in numbered():
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TraceFormatError(f"{where}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise TraceFormatError(f"{where}: {line.strip()[:40]}, expected an object")
        yield where, record


def _plain(key: str) -> str:
    return "".join(char for char in key.lower() if char.isalnum())


def _find(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Value under the first of the names that is there, outermost level first."""
    level: deque[tuple[Mapping[str, Any], int]] = deque([(record, 0)])
    while level:
        mapping, depth = level.popleft()
        plain = {_plain(key): value for key, value in mapping.items()}
        for name in names:
            if plain.get(name) not in (None, "", "-"):
                return plain[name]
        if depth < _DEPTH:
            level.extend(
                (value, depth + 1)
                for value in mapping.values()
                if isinstance(value, dict)
            )
    return None


def _count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TraceFormatError(f"{where}: {value!r}, expected a token count") from None
    if not 0 <= number < 1e9:
        raise TraceFormatError(f"{where}: {value!r}, expected a token count >= 0")
    return int(number)


def _seconds(value: Any, where: str) -> float | None:
    """Seconds since some origin: a number as it is, else ISO 8601, in UTC if naive."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        instant = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise TraceFormatError(
            f"{where}: {value!r}, expected seconds or an ISO 8601 instant"
        ) from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return instant.timestamp()
