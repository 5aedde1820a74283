"""Reads Envoy's access log: what was decided for each request, and who answered."""

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
        pool: the router's decision; None if there was none.
        cluster: who gave the answer that the client saw.
        attempts: upstream attempts; 2 for an overflow.
        category, reason, prompt_tokens, budget_tokens: the decision's own numbers.
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
    """``envoy.yaml``'s field `decision`: numbers of dynamic metadata are floats."""

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
    """Return the records of all whole lines so far by request id."""
    records = {}
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        try:
            record = _record(_lines.decode(line))
        except msgspec.MsgspecError:
            continue  # the last line, half written
        records[record.request_id] = record
    return records


def wait_for_records(
    path: Path, request_ids: Collection[str], timeout_s: float = 30.0
) -> dict[str, Record]:
    """Read until every one of ``request_ids`` is there, or time is up.

    Envoy writes a line when a request is over, and flushes now and then.
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
