"""Reads Envoy's access log: each request's routing decision and backend."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Record:
    """One line of ``envoy.yaml``'s access log.

    Attributes:
        pool: the pool that the router chose; None without a decision.
        cluster: the cluster whose response the client received.
        attempts: number of upstream attempts; 2 after an overflow.
        category, reason, prompt_tokens, budget_tokens: fields of the decision.
    """

    request_id: str
    status: int
    pool: str | None
    cluster: str
    attempts: int
    duration_ms: float
    category: str | None
    reason: str | None
    prompt_tokens: int | None
    budget_tokens: int | None


class _Decision(msgspec.Struct):
    """The log's field `decision`: numbers from dynamic metadata are floats."""

    category: str | None = None
    reason: str | None = None
    prompt_tokens: float | None = None
    budget_tokens: float | None = None


class _Line(msgspec.Struct):
    request_id: str | None = None
    status: int | None = None
    pool: str | None = None
    cluster: str | None = None
    attempts: int | None = None
    duration_ms: float | None = None
    decision: _Decision | None = None


_lines = msgspec.json.Decoder(_Line)


def read_records(path: Path) -> dict[str, Record]:
    """Return the records of all complete lines so far, by request id."""
    records = {}
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        try:
            record = _record(_lines.decode(line))
        except msgspec.MsgspecError:
            continue  # the last line, partly written
        records[record.request_id] = record
    return records


def wait_for_records(
    path: Path, request_ids: Collection[str], timeout_s: float = 30.0
) -> dict[str, Record]:
    """Read the log until all ``request_ids`` are present, or the timeout expires.

    Envoy logs a request when it completes, and flushes the log periodically.
    """
    deadline = time.monotonic() + timeout_s
    wanted = set(request_ids)
    while True:
        records = read_records(path)
        if wanted <= records.keys() or time.monotonic() > deadline:
            return {each: records[each] for each in wanted if each in records}
        time.sleep(_POLL_S)


def _record(line: _Line) -> Record:
    decision = line.decision or _Decision()
    return Record(
        request_id=line.request_id or "",
        status=line.status or 0,
        pool=line.pool,
        cluster=line.cluster or "",
        attempts=line.attempts or 0,
        duration_ms=line.duration_ms or 0.0,
        category=decision.category,
        reason=decision.reason,
        prompt_tokens=_whole(decision.prompt_tokens),
        budget_tokens=_whole(decision.budget_tokens),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
