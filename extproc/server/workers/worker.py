"""One of several processes that serve together, each at an address of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def worker_address(listen: str, index: int) -> str:
    """The address of a worker: the ports, or the sockets, follow each other.

    Args:
        listen: ``server.listen``: HOST:PORT, or unix:PATH for unix:PATH.0 and so on.
        index: from 0.
    """
    if listen.startswith("unix:"):
        return f"{listen}.{index}"
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + index}"


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of them a process is.

    Attributes:
        directory: theirs alone, for as long as their supervisor lives.
        index: from 0.
    """

    directory: Path
    index: int

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
