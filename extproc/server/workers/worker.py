"""Identity of one of several worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Worker:
    """Identity of a worker: its index and its directory."""

    directory: Path
    """Directory that only the workers share; it exists as long as the supervisor."""
    index: int
    """Index of the worker, starting at 0."""

    @classmethod
    def at(cls, place: Path) -> Worker:
        """Parse ``str(worker)``.

        Raises:
            ValueError: the string is not a worker.
        """
        return cls(place.parent, int(place.name))

    def __str__(self) -> str:
        return str(self.directory / str(self.index))

    @property
    def admin_socket(self) -> Path:
        """Unix socket of the worker's own admin port."""
        return self.directory / f"admin.{self.index}"

    @property
    def state(self) -> Path:
        """Directory of the shared learned state, unless a store is configured."""
        return self.directory / "state"
