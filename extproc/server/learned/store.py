"""Where learned state is kept: one document that several processes change in turn.

A store knows nothing of the document. It offers one atomic read-modify-write, so that
no update is lost when two write at once.
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
"""A model's sums take about 0.2 MB and at most 64 models are learned apart; more than
this was not written by this program, and is not read."""

OF_EARLIER_VERSION = "of an earlier version: learning starts over"

_LOCK_TIMEOUT_S = 2.0
_LOCK_POLL_S = 0.02


class StoreError(Exception):
    """The store is away, or does not let us: try again later."""


class UnreadableDocument(Exception):  # noqa: N818 - a finding, not a failure
    """The document is not one that can be gone on from.

    Args:
        kind: a word for the name that it is set aside under.
        reason: for the log.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SetAside:
    """A document that is not used: moved away, or left to servers of its version."""

    place: str
    reason: str


Change = Callable[[bytes | None], bytes | None]
"""Gets the stored document (None: there is none), returns the one to store instead
(None: leave it as it is). May be called again, should another process have been
faster; may raise ``UnreadableDocument``, and is then called with None."""


class Store(Protocol):
    """Keeps one document. Its methods block: call them on a thread of their own."""

    def update(self, change: Change) -> SetAside | None:
        """Change the document atomically; say if the one there had to be set aside.

        What was set aside as the same kind before is overwritten, so that they do not
        pile up.

        Raises:
            StoreError: it did not happen, or nobody knows whether it did.
        """


class DirectoryStore:
    """A file in a directory that the processes of one machine share.

    A writer holds a lock (``flock``, which the kernel takes back from a process that
    dies) and replaces the file by a complete one that is on the disk: whatever
    happens, a reader finds the old document or the new one.
    """

    def __init__(
        self, directory: Path, name: str, earlier_names: Sequence[str] = ()
    ) -> None:
        self._file = directory / name
        self._earlier = [directory / earlier for earlier in earlier_names]
        self._lock = directory / f"{name}.lock"

    def update(self, change: Change) -> SetAside | None:
        """Change the document atomically."""
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
    # Not for ever: the holder may have been stopped in the middle.
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
    # Without it a power cut may take the rename back.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
