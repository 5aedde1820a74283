"""Memory for conversation counts, private or shared by the workers."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from extproc.routing.conversation import memory_bytes

logger = logging.getLogger(__name__)


class ConversationMemory:
    """Allocates the memory for ``routing.conversation.Conversations``.

    Its content survives a reload unless the size changes.

    Args:
        directory: directory shared by the workers, in which they map one file per size.
            It must be deleted when they stop. None if the memory is not shared.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._opened: tuple[int, memoryview] | None = None

    def open(self, entries: int) -> memoryview:
        """Return the memory for a number of entries, at least 1.

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
        # Write zeros instead of just extending the file: a full disk is an error here,
        # but would be a fatal signal when a mapped byte without disk space is first
        # used.
        at = os.fstat(descriptor).st_size
        while at < size:
            at += os.pwrite(descriptor, bytes(min(1 << 20, size - at)), at)
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
