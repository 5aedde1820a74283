"""Records observed decisions in a file as lines of JSON, for ``extproc replay``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from extproc.exchange.events import Observation
from extproc.exchange.observation_line import write_line
from extproc.routing.router import Lesson

logger = logging.getLogger(__name__)


class Recording:
    """Appends a line for each observed response; ``observed`` never raises.

    Each line is written to the operating system at once (about 10 us), so that readers
    see complete lines and a crash loses no line. Recording stops at ``max_bytes`` or at
    the first disk error, with one message in the log. The lines already written stay.

    Args:
        path: file to append to; created if it does not exist.
        max_bytes: maximum file size in bytes; other processes may write to it too.
        clock: seconds since the epoch.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._file: BinaryIO | None = path.open("ab", buffering=0)
        self._max_bytes = max_bytes

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Append the line of a response."""
        if self._file is None:
            return
        line = write_line(observation, self._clock())
        size_bytes = os.fstat(self._file.fileno()).st_size
        if size_bytes + len(line) > self._max_bytes:
            self._end("recording_full")
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._end("recording_failed", error.strerror or str(error))

    def close(self) -> None:
        """Close the file; later observations are dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self, event: str, error: str = "") -> None:
        self.close()
        fields = {"file": str(self._path)} | ({"error": error} if error else {})
        logger.warning(event, extra={"fields": fields})
