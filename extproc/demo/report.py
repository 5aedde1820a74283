"""Formats the demo's results for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from extproc.demo.results import Errors, Results
from extproc.routing.ratio import DEFAULT_BYTES_PER_TOKEN

_HEADINGS = (
    ("category", ""),
    ("requests", ""),
    ("over-", "flows"),
    ("bytes/token", "at first"),
    ("", "learned"),
    ("", "true"),
    ("error of", "bytes/4"),
    ("nothing", "learned"),
    ("as", "routed"),
)


def as_text(results: Results, pools: Sequence[str]) -> str:
    """Format the results as a table and conclusions.

    Args:
        pools: names of the pools, the short one first.
    """
    lines = [*_table(results, pools), "", *_summary(results)]
    return "\n".join(lines)


def _table(results: Results, pools: Sequence[str]) -> list[str]:
    rows = [
        (
            row.category,
            str(row.requests),
            *(str(row.pools.get(pool, 0)) for pool in pools),
            str(row.overflows),
            f"{DEFAULT_BYTES_PER_TOKEN:.2f}",
            _number(row.learned_bytes_per_token),
            _number(row.true_bytes_per_token),
            *_percents(row.errors),
        )
        for row in results.rows
    ]
    total = (
        "all",
        str(results.requests),
        *(str(results.pools.get(pool, 0)) for pool in pools),
        str(results.overflow_retries),
        "",
        "",
        "",
        *_percents(results.errors),
    )
    headings = _headings(pools)
    cells = [[h[0] for h in headings], [h[1] for h in headings], *rows, total]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    rule = "  ".join("-" * width for width in widths)
    formatted = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [*formatted[:2], rule, *formatted[2:-1], rule, formatted[-1]]


def _headings(pools: Sequence[str]) -> list[tuple[str, str]]:
    destinations = [("to", pool) for pool in pools]
    return [*_HEADINGS[:2], *destinations, *_HEADINGS[2:]]


def _summary(results: Results) -> list[str]:
    lines = [
        f"{results.requests} requests in {results.duration_s:.1f} s,"
        f" {len(results.failed)} failed,"
        f" {results.without_decision} without a decision of the router.",
    ]
    if results.compared:
        by_four, before, after = _percents(results.errors)
        lines.append(
            f"Estimated prompt tokens were off by {after} as routed; with nothing"
            f" learned by {before}, and by {by_four} at four bytes a token (mean"
            f" error of the same {results.compared} requests, the last half)."
        )
    lines.append(
        f"Of {results.judged} requests with a count, {results.under} needed more than"
        f" the pool they were sent to, and {results.over} would have fitted a smaller"
        f" one (with nothing learned: {results.cold_under} and {results.cold_over})."
    )
    lines.append(
        f"{results.overflow_retries} overflowed the short pool and were answered by"
        " the long one."
    )
    overflow = results.measured.overflow
    if overflow is not None:
        lines.append(
            f"A prompt of {overflow.prompt_tokens} tokens, sent to the short pool on"
            f" purpose: {overflow.status} from {overflow.answered_by}, attempt"
            f" {overflow.attempts}."
        )
    latency = results.measured.latency
    if latency is not None:
        lines.append(
            f"Added latency against the same Envoy without the router: "
            f"{latency.p50:.2f} ms (p50), {latency.p99:.2f} ms (p99)."
        )
    failures = (
        f"FAILED {reply.request.path}: {reply.status} {reply.detail}"
        for reply in results.failed[:5]
    )
    return [*lines, *failures]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percents(errors: Errors) -> list[str]:
    values = (errors.bytes_over_four_pct, errors.before_pct, errors.after_pct)
    return ["-" if value is None else f"{value:.1f} %" for value in values]


class ProgressBar:
    """A one-line progress bar on a terminal; no output elsewhere."""

    _WIDTH = 30

    def __init__(self, label: str, total: int, out: TextIO = sys.stderr) -> None:
        self._label = label
        self._total = max(total, 1)
        self._out = out if out.isatty() else None
        self._done = 0
        self._draw()

    def advance(self) -> None:
        """Count one more item as done."""
        self._done += 1
        self._draw()

    def _draw(self) -> None:
        if self._out is None:
            return
        filled = self._WIDTH * self._done // self._total
        bar = "#" * filled + "." * (self._WIDTH - filled)
        print(
            f"\r{self._label} [{bar}] {self._done}/{self._total}",
            end="\n" if self._done == self._total else "",
            file=self._out,
            flush=True,
        )
