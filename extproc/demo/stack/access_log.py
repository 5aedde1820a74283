"""Reads Envoy's access log: what was decided for each request, and who answered."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_records(path: Path) -> dict[str, Record]:
    """All whole lines so far, by request id; what is not one of ours is left out."""
    records = {}
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line, half written
        record = _record(entry)
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


def _record(entry: dict[str, Any]) -> Record:
    decision = entry.get("decision") or {}
    return Record(
        request_id=entry.get("request_id") or "",
        status=entry.get("status") or 0,
        pool=entry.get("pool"),
        cluster=entry.get("cluster") or "",
        attempts=entry.get("attempts") or 0,
        duration_ms=entry.get("duration_ms") or 0.0,
        category=decision.get("category"),
        reason=decision.get("reason"),
        prompt_tokens=_whole(decision.get("prompt_tokens")),
        budget_tokens=_whole(decision.get("budget_tokens")),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
