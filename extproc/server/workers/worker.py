"""One of several processes that serve together, each at an address of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of them a process is."""

    directory: Path
    """Theirs alone, for as long as their supervisor lives."""
    index: int
    """From 0."""

    @classmethod
    def at(cls, place: Path) -> Worker:
        """Read ``str(worker)`` back.

        Raises:
            ValueError: it is not one.
        """
        return cls(place.parent, int(place.name))

    def __str__(self) -> str:
        return str(self.directory / str(self.index))

    @property
    def admin_socket(self) -> Path:
        """Where it serves what a single process serves at ``server.admin``."""
        return self.directory / f"admin.{self.index}"

    @property
    def state(self) -> Path:
        """Where they share what they learn, if nothing else is configured."""
        return self.directory / "state"
