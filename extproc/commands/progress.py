"""A progress bar in the terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """A progress bar with the time left, shown if standard error is a terminal."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = max(1, total)
        self._shown = sys.stderr.isatty()
        self._started_s = time.monotonic()
        self.show(0)

    def show(self, done: int) -> None:
        """Draw the bar with ``done`` of the total."""
        if not self._shown:
            return
        filled = 30 * min(done, self._total) // self._total
        bar = "#" * filled + "." * (30 - filled)
        passed_s = time.monotonic() - self._started_s
        end = "\n" if done >= self._total else ""
        print(
            f"\r{self._label} [{bar}] {done}/{self._total}"
            f"{time_left(passed_s, done, self._total):24}",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def time_left(passed_s: float, done: int, total: int) -> str:
    """Return a note on the time left, estimated from the pace so far."""
    if not 0 < done < total:
        return ""
    left_s = passed_s * (total - done) / done
    if left_s < 90:
        return f", about {left_s:.0f} s left"
    return f", about {left_s / 60:.0f} min left"
