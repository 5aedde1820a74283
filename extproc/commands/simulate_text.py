"""Formats a simulated fleet for the terminal."""

from __future__ import annotations

from typing import Any

from extproc.commands.text import wrap
from extproc.fleet.results import RunState

_STATES = {
    RunState.STEADY: "steady: measured after the fleet had filled, and its two halves "
    "agree",
    RunState.OVERLOADED: "OVERLOADED: requests pile up, and every figure grows with "
    "the run; it takes more instances",
    RunState.UNSETTLED: "NOT SETTLED: the run ended before its two halves agreed; take "
    "more --requests",
    RunState.TRANSIENT: "measured from the first request on",
}


_POOL_ROWS = (
    ("requests measured", "requests", 1),
    ("requests a second", "requests_per_s", 1),
    ("utilization", "utilization", 1),
    ("mean TTFT, ms", "mean_ttft_s", 1e3),
    ("P50 TTFT, ms", "p50_ttft_s", 1e3),
    ("P99 TTFT, ms", "p99_ttft_s", 1e3),
    ("mean TPOT, ms", "mean_tpot_s", 1e3),
    ("P50 TPOT, ms", "p50_tpot_s", 1e3),
    ("P99 TPOT, ms", "p99_tpot_s", 1e3),
    ("P99 queue wait, ms", "p99_wait_s", 1e3),
    ("mean end to end, ms", "mean_e2e_s", 1e3),
    ("P99 end to end, ms", "p99_e2e_s", 1e3),
    ("preemptions a request", "preemption_rate", 1),
    ("overflows", "overflows", 1),
    ("truncated", "truncated", 1),
    ("busy share", "busy_share", 1),
    ("running an instance", "mean_running", 1),
    ("in the pool", "mean_in_system", 1),
    ("KV usage, mean", "mean_kv_cache_usage", 1),
    ("KV usage, peak", "peak_kv_cache_usage", 1),
    ("tokens a second", "tokens_per_s", 1),
    ("prompt tokens cached", "cached_share", 1),
)
_FLEET_ROWS = (
    ("P99 TTFT, ms", "p99_ttft_s", 1e3),
    ("P99 TPOT, ms", "p99_tpot_s", 1e3),
    ("late", "late_share", 1),
    ("rejected", "rejected_share", 1),
    ("overflowed", "overflow_share", 1),
    ("misrouted short", "misrouted_short", 1),
    ("misrouted long", "misrouted_long", 1),
)


def print_fleet(document: dict[str, Any]) -> None:
    """Print the results of :mod:`extproc.commands.simulate`, with a column per pool."""
    print(
        wrap(
            f"{document['workload']}: {document['traffic']}; router "
            f"{document['router']}, seeds {', '.join(map(str, document['seeds']))}"
        )
    )
    print(
        wrap(
            f"{document['requests']} requests in {document['duration_s']:.0f} s after "
            f"{document['fill_s']:.0f} s of filling; {_STATES[document['state']]}"
        )
    )
    alone = [pool["name"] for pool in document["pools"] if pool["measured_alone"]]
    if alone:
        print(
            wrap(
                "measured alone with its own requests, since few of the fleet's reach "
                f"it: {', '.join(alone)}"
            )
        )
    print()
    names = [
        f"{pool['name']} x{pool['instances']} ({pool['max_model_len']})"
        for pool in document["pools"]
    ]
    print(f"{'':24}" + "".join(f"{name:>24}" for name in names))
    for label, key, scale in _POOL_ROWS:
        cells = [_cell(pool[key], scale) for pool in document["pools"]]
        print(f"{label:24}" + "".join(f"{cell:>24}" for cell in cells))
    print()
    for label, key, scale in _FLEET_ROWS:
        print(f"{'fleet: ' + label:24}{_cell(document[key], scale):>24}")
    if not all(map(_is_bounded, [document, *document["pools"]])):
        print("\n+- ?: too few requests for an interval; take more --requests")
    print(f"{document['wall_time_s']} s")


def _is_bounded(figures: dict[str, Any]) -> bool:
    """Return whether every figure has an interval."""
    return all(
        value["mean"] is None or value["half_width"] is not None
        for value in figures.values()
        if isinstance(value, dict)
    )


def _cell(value: Any, scale: float) -> str:
    if not isinstance(value, dict):
        return str(value)
    if value["mean"] is None:
        return "-"
    text = f"{scale * value['mean']:.4g}"
    if value["half_width"] is None:
        return f"{text} +- ?"
    return f"{text} +- {scale * value['half_width']:.2g}"
