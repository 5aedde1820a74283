"""Reloads the configuration on SIGHUP and when the file changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

from extproc.config import Config, ConfigError, load_config

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two checks of the file. Polling also detects a replaced file, or a
replaced symbolic link in the file's path (as in a Kubernetes ConfigMap), which file
notifications miss."""


class Reloaded(StrEnum):
    """Result of a reload. A closed set, used as metric labels."""

    OK = "ok"
    FAILED = "failed"
    """The previous configuration stays in force."""


Fingerprint = tuple[str, int, int, int]


def fingerprint(path: Path) -> Fingerprint | None:
    """Return a value that changes with the file's content; None if there is no file.

    The value consists of the resolved path, inode, modification time and size.
    """
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError:
        return None
    return real, status.st_ino, status.st_mtime_ns, status.st_size


class ConfigWatch:
    """Reloads a configuration file.

    Args:
        path: the file; None if the server uses the defaults, so that SIGHUP has no
            effect.
        apply: function that applies a configuration and returns the changed settings
            that need a restart.
        reloaded: called with the result of each reload and the number of changed
            settings that need a restart.
        poll_s: seconds between two checks of the file.
    """

    def __init__(
        self,
        path: Path | None,
        apply: Callable[[Config], Awaitable[list[str]]],
        reloaded: Callable[[Reloaded, int], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._path = path
        self._apply = apply
        self._reloaded = reloaded
        self._poll_s = poll_s
        self._asked = asyncio.Event()
        self._seen = fingerprint(path) if path is not None else None

    def ask(self) -> None:
        """Request an immediate reload on SIGHUP, even if the file is unchanged."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            asked = await self._woken()
            if self._path is None:
                continue
            found = fingerprint(self._path)
            # A missing file is probably being replaced, so wait for the new file.
            if asked or (found is not None and found != self._seen):
                self._seen = found
                await self.reload(self._path)

    async def _woken(self) -> bool:
        try:
            await asyncio.wait_for(self._asked.wait(), self._poll_s)
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def reload(self, path: Path) -> None:
        """Read and apply the file, or log the error."""
        try:
            config = _read(path)
            kept = await self._apply(config)
        except (OSError, UnicodeError, ConfigError) as error:
            self._failed(path, error)
            return
        except Exception as error:
            logger.exception("config_reload_fault")
            self._failed(path, error)
            return
        if kept:
            fields = {"settings": ", ".join(kept)}
            logger.warning("restart_needed", extra={"fields": fields})
        logger.info("config_reloaded", extra={"fields": {"path": str(path)}})
        self._reloaded(Reloaded.OK, len(kept))

    def _failed(self, path: Path, error: Exception) -> None:
        fields = {"path": str(path), "error": str(error), "in_force": "previous"}
        logger.error("config_refused", extra={"fields": fields})
        self._reloaded(Reloaded.FAILED, 0)


def _read(path: Path) -> Config:
    return load_config(path.read_text(encoding="utf-8"), os.environ)
