"""Structured logs of the standard library: an event name, then fields.

``logger.info("serving", extra={"fields": {"listen": ...}})``. Fields are numbers and
names from the configuration, never bodies or credentials.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from extproc.config import LogConfig, LogFormat

logger = logging.getLogger(__name__)

_Raised = (
    tuple[type[BaseException], BaseException, TracebackType | None]
    | tuple[None, None, None]
)


class _Formatter(logging.Formatter):
    """Formats an exception as its type and the place where it was raised.

    The message of an exception is omitted because it may quote a request. Only errors
    of the operating system keep their message.
    """

    def formatException(self, ei: _Raised) -> str:  # noqa: N802 - logging's name
        _, error, frames = ei
        kind = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            kind += f": {error.strerror}"
        return "".join(traceback.format_tb(frames)) + kind


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{key}={value}" for key, value in _fields(record).items()]
        return " ".join(parts) + _trace(self, record)


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    return "\n" + formatter.formatException(record.exc_info)


WIRE: Final = "extproc.frames"
"""Logger of HTTP/2 frames. If frames are logged, this logger has level DEBUG, whatever
the configured level."""


def configure_logging(config: LogConfig) -> None:
    """Write the process's logs to standard error as configured."""
    handler = logging.StreamHandler()
    json_wanted = config.format is LogFormat.JSON
    handler.setFormatter(_JsonFormatter() if json_wanted else _TextFormatter())
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    logging.getLogger(WIRE).setLevel(logging.DEBUG if config.wire else logging.INFO)


class OncePerInterval(logging.Handler):
    """Forwards one record per interval to another logger and drops all other records.

    Args:
        target: logger that receives the forwarded records.
        interval_s: seconds between forwarded records.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        target: logging.Logger,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._target = target
        self._interval_s = interval_s
        self._clock = clock
        self._next_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = self._clock()
        if now_s >= self._next_s and self._target.isEnabledFor(record.levelno):
            self._next_s = now_s + self._interval_s
            self._target.handle(record)


def log_failure(where: str, error: BaseException) -> None:
    """Log an exception that a call raised, and the place where it was raised."""
    logger.error("call_failed", extra={"fields": {"where": where}}, exc_info=error)


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an unhandled error of the event loop; for use as its exception handler."""
    what = context["message"].partition("(")[0]  # omit the callback's arguments
    fields = {"what": what.rstrip()}
    error = context.get("exception")
    logger.error("loop_error", extra={"fields": fields}, exc_info=error)
