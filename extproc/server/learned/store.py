"""Storage for learned state, in one document that several processes update in turn.

A store does not parse the document. It offers one atomic read-modify-write operation,
so that no update is lost if two processes write at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_DOCUMENT_BYTES = 64 << 20
"""Largest document in bytes. A model's sums take about 0.4 MB and at most 64 models are
learned separately. A larger document was not written by this program and is ignored."""

OF_EARLIER_VERSION = "from an earlier version: learning starts over"

_LOCK_TIMEOUT_S = 2.0
_LOCK_POLL_S = 0.02


class StoreError(Exception):
    """The store is unreachable or denied access; retry later."""


class UnreadableDocument(Exception):  # noqa: N818 - a finding, not a failure
    """The document cannot be used.

    Args:
        kind: word that is added to the document's name when it is set aside.
        reason: description for the log.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SetAside:
    """An unused document, which was renamed or left to the servers of its version."""

    place: str
    reason: str


Change = Callable[[bytes | None], bytes | None]
"""Function from the stored document (None if there is none) to its replacement (None
for no change). It may be called again if another process wrote first. If it raises
``UnreadableDocument``, it is called again with None."""


class Store(Protocol):
    """Stores one document. Its methods block, so call them on a separate thread."""

    def update(self, change: Change) -> SetAside | None:
        """Update the document atomically; return the document set aside, or None.

        A document of the same kind that was set aside earlier is overwritten, so that
        such documents do not accumulate.

        Raises:
            StoreError: the update failed, or its outcome is unknown.
        """


class DirectoryStore:
    """A file in a directory that the processes of one machine share.

    A writer holds a lock (``flock``, which the kernel releases if the process dies) and
    replaces the file with a complete file that is already on the disk. A reader
    therefore always finds either the old document or the new document.
    """

    def __init__(
        self, directory: Path, name: str, earlier_names: Sequence[str] = ()
    ) -> None:
        self._file = directory / name
        self._earlier = [directory / earlier for earlier in earlier_names]
        self._lock = directory / f"{name}.lock"

    def update(self, change: Change) -> SetAside | None:
        """Update the document atomically."""
        try:
            with self._locked():
                aside = None
                try:
                    stored = self._read()
                    if stored is None:
                        aside = self._earlier_document()
                    changed = change(stored)
                except UnreadableDocument as found:
                    place = self._file.with_name(f"{self._file.name}.{found.kind}")
                    self._file.replace(place)
                    aside = SetAside(str(place), found.reason)
                    changed = change(None)
                if changed is not None:
                    self._write(changed)
                return aside
        except OSError as error:
            raise StoreError(f"{self._file}: {error.strerror or error}") from error

    def _earlier_document(self) -> SetAside | None:
        for place in self._earlier:
            if place.exists():
                return SetAside(str(place), OF_EARLIER_VERSION)
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _acquire(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> bytes | None:
        try:
            with self._file.open("rb") as file:
                content = file.read(MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(content) > MAX_DOCUMENT_BYTES:
            raise UnreadableDocument("too-large", f"over {MAX_DOCUMENT_BYTES} bytes")
        return content

    def _write(self, content: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f"{self._file.name}.", suffix=".tmp", dir=self._file.parent
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._file)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_directory(self._file.parent)


def _acquire(descriptor: int) -> None:
    # Stop waiting at some point, since the process that holds the lock may be
    # suspended.
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError("another process holds the lock") from None
        time.sleep(_LOCK_POLL_S)


def _sync_directory(directory: Path) -> None:
    # Without this, a power failure may undo the rename.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
