"""Structured logs through the standard library: an event name, then fields.

``logger.info("serving", extra={"fields": {"listen": ...}})``. Fields are numbers and
names of ours; never bodies, never credentials.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from extproc.config import LogConfig, LogFormat


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{key}={value}" for key, value in _fields(record).items()]
        return " ".join(parts) + _trace(self, record)


class _JsonFormatter(logging.Formatter):
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


def configure_logging(config: LogConfig) -> None:
    """Send the process's logs to standard error as configured."""
    handler = logging.StreamHandler()
    json_wanted = config.format is LogFormat.JSON
    handler.setFormatter(_JsonFormatter() if json_wanted else _TextFormatter())
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
