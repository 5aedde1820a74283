"""Memory for conversation counts, which is private or shared by the workers."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from extproc.routing.conversation import memory_bytes

logger = logging.getLogger(__name__)


class ConversationMemory:
    """Allocates the memory for ``routing.conversation.Conversations``.

    The content survives a reload unless the size changes.

    Args:
        directory: directory shared by the workers, which map one file in it for each
            size. The directory must be deleted when the workers stop. None if the
            memory is not shared.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._opened: tuple[int, memoryview] | None = None

    def open(self, entries: int) -> memoryview:
        """Return the memory for the given number of entries, at least 1.

        If the file cannot be created, the memory is private to the process and the
        error is logged: a worker that remembers only its own conversations can still
        serve.
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
        # Write zeros instead of only extending the file, so that a full disk causes an
        # error now. Otherwise the first use of a mapped byte without disk space would
        # cause a fatal signal.
        at = os.fstat(descriptor).st_size
        while at < size:
            at += os.pwrite(descriptor, bytes(min(1 << 20, size - at)), at)
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
