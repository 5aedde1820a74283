"""One decision and what came of it, as a line that can be kept: numbers, no text.

``replay`` scores such lines at any threshold, ``plan`` and ``simulate`` read their
``time`` and ``usage`` as a workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.exchange.events import Observation, Serving
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision, Outcome


def write_record(observation: Observation, time_s: float) -> dict[str, Any]:
    """Put an observation in plain values.

    Args:
        observation: a decision and its outcome.
        time_s: when the outcome was known, in seconds since the epoch.
    """
    decision, outcome = observation.decision, observation.outcome
    return {
        "time": round(time_s, 3),
        "status": outcome.status,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
        },
        "truncated": outcome.truncated,
        "attempts": outcome.attempts,
        **_write_serving(observation.serving),
        "decision": {
            "pool": decision.pool.name,
            "max_model_len": decision.pool.max_model_len,
            "threshold_tokens": decision.pool.threshold_tokens,
            "reason": str(decision.reason),
            "category": str(decision.category),
            "body_bytes": decision.body_bytes,
            "prompt_tokens": decision.prompt_tokens,
            "bound_tokens": decision.bound_tokens,
            "output_tokens": decision.output_tokens,
            "declared": decision.declared,
        },
    }


def _write_serving(serving: Serving | None) -> dict[str, Any]:
    if serving is None:
        return {}
    first_byte_s = serving.first_byte_s
    return {
        "cluster": serving.cluster,
        "first_byte_s": None if first_byte_s is None else round(first_byte_s, 6),
    }


def _read_serving(record: Mapping[str, Any]) -> Serving | None:
    if "cluster" not in record:
        return None
    first_byte_s = record["first_byte_s"]
    return Serving(
        str(record["cluster"]), None if first_byte_s is None else float(first_byte_s)
    )


def read_record(record: Mapping[str, Any]) -> Observation:
    """Read what ``write_record`` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not such a record.
    """
    usage, decided = record["usage"], record["decision"]
    decision = Decision(
        pool=Pool(
            str(decided["pool"]),
            int(decided["max_model_len"]),
            int(decided["threshold_tokens"]),
        ),
        reason=Reason(decided["reason"]),
        category=str(decided["category"]),
        body_bytes=int(decided["body_bytes"]),
        prompt_tokens=int(decided["prompt_tokens"]),
        bound_tokens=int(decided["bound_tokens"]),
        output_tokens=int(decided["output_tokens"]),
        declared=bool(decided["declared"]),
    )
    outcome = Outcome(
        status=int(record["status"]),
        prompt_tokens=usage["prompt_tokens"] and int(usage["prompt_tokens"]),
        completion_tokens=usage["completion_tokens"]
        and int(usage["completion_tokens"]),
        truncated=bool(record["truncated"]),
        attempts=int(record["attempts"]),
    )
    return Observation(decision, outcome, _read_serving(record))
