"""Where the counts of conversations lie: this process's memory, or its workers' own."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from extproc.routing.conversation import memory_bytes

logger = logging.getLogger(__name__)


class ConversationMemory:
    """Gives the memory for ``routing.conversation.Conversations``.

    A reload finds what was remembered before it, unless the size has changed.

    Args:
        directory: of the workers that share it: a file for each size, which they map.
            It must end with them. None: nobody shares it.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._opened: tuple[int, memoryview] | None = None

    def open(self, entries: int) -> memoryview:
        """Return the memory for so many entries, at least 1.

        If the file cannot be had, the memory is this process's own, and the log says
        so: a worker that remembers its own turns alone still serves.
        """
        size = memory_bytes(entries)
        if self._opened is None or self._opened[0] != size:
            self._opened = size, self._obtain(size)
        return self._opened[1]

    def _obtain(self, size: int) -> memoryview:
        if self._directory is not None:
            try:
                return _map(self._directory / f"conversations.{size}", size)
            except (OSError, ValueError) as error:
                fields = {"error": str(error), "directory": str(self._directory)}
                extra = {"fields": fields}
                logger.error("conversations_not_shared", extra=extra)
        return memoryview(bytearray(size))


def _map(path: Path, size: int) -> memoryview:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Written, not only made longer: a full disk is an error here, and would be a
        # fatal signal at the first use of a mapped byte that the file has no room for.
        at = os.fstat(descriptor).st_size
        while at < size:
            at += os.pwrite(descriptor, bytes(min(1 << 20, size - at)), at)
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
