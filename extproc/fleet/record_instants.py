"""Instants of records: under which key, and in which unit.

A key may name its unit (``t_s``, ``timestamp_ms``, ``startTimeUnixNano``); a date is in
no unit. Else the unit is that of the format, or follows from the size of the numbers:
a file's instants are read in one unit, decided from all of them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from extproc.fleet.record_fields import FieldError, Level

#: Instants, arrival first: none of these names is an end or a duration.
_INSTANTS = (
    "arrivaltime",
    "arrivedat",
    "arrival",
    "arrivals",
    "requeststarttime",
    "requeststart",
    "starttime",
    "starttimes",
    "startedat",
    "start",
    "timestamp",
    "requesttime",
    "time",
    "times",
    "ts",
    "t",
    "datetime",
    "createdat",
    "created",
    "createtime",
)
_UNIT_ENDINGS = {
    "unixnano": 1e-9,
    "nanoseconds": 1e-9,
    "nanos": 1e-9,
    "ns": 1e-9,
    "microseconds": 1e-6,
    "micros": 1e-6,
    "us": 1e-6,
    "milliseconds": 1e-3,
    "millis": 1e-3,
    "ms": 1e-3,
    "seconds": 1.0,
    "secs": 1.0,
    "sec": 1.0,
    "s": 1.0,
}
#: Plain key to its place in the order above, and to the seconds of its unit (None if
#: the key names none).
_INSTANT_KEYS: dict[str, tuple[int, float | None]] = {
    **{
        name + ending: (place, seconds)
        for place, name in enumerate(_INSTANTS)
        for ending, seconds in _UNIT_ENDINGS.items()
    },
    **{name: (place, None) for place, name in enumerate(_INSTANTS)},
}


@dataclass(frozen=True, slots=True)
class Instant:
    """When a request came, as its record says it."""

    key: str
    """The plain key that it was found under."""
    value: float
    """A number of the unit, or seconds since 1970 if it was a date."""
    unit_s: float | None
    """Seconds of the unit; None if neither the key nor the value names one."""


def find_instant(record: Sequence[Level]) -> Instant | None:
    """When the request came, or None if the record does not say.

    Raises:
        FieldError: neither a number nor a date.
    """
    for level in record:
        keys = [key for key in level if key in _INSTANT_KEYS]
        if not keys:
            continue
        key = min(keys, key=lambda name: _INSTANT_KEYS[name][0])
        number = _number(level[key])
        if number is None:
            return Instant(key, _date_s(str(level[key])), 1.0)
        if math.isfinite(number):
            return Instant(key, number, _INSTANT_KEYS[key][1])
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    if re.fullmatch(r"\d+,\d+", text):
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def _date_s(text: str) -> float:
    """Seconds since 1970 of a date, in UTC if it names no zone.

    ISO 8601, also with "/" between year, month and day or "UTC" at the end; the common
    log format's "10/May/2024:13:55:36 +0000"; RFC 2822's.
    """
    clean = text.strip().removesuffix(" UTC")
    if re.match(r"\d{4}/\d\d/\d\d", clean):
        clean = clean.replace("/", "-", 2)
    for parse in (datetime.fromisoformat, _common_log, parsedate_to_datetime):
        try:
            instant = parse(clean)
        except ValueError:
            continue
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return instant.timestamp()
    raise FieldError(f"{text!r}; expected seconds or an ISO 8601 instant")


def _common_log(text: str) -> datetime:
    return datetime.strptime(text.strip("[]"), "%d/%b/%Y:%H:%M:%S %z")


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a file's instants."""

    seconds: float
    """Of one."""
    reason: str
    """How it is known, in a few words."""


_NAMES = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "ns"}


def unit_of(
    values: npt.NDArray[np.float64],
    named: float | None,
    *,
    hashed: bool,
    chained: bool,
) -> Unit:
    """The unit that all instants of a file are in.

    Mooncake counts milliseconds, Bailian seconds with three decimals; both call their
    counts ``input_length``. Numbers above 10^11 cannot be seconds since 1970, nor those
    above 10^14 milliseconds, nor those above 10^17 microseconds.

    Args:
        values: of the instants, at least one.
        named: seconds of the unit that the key names, if it names one.
        hashed: the records are Mooncake's or Bailian's.
        chained: the records are Bailian's, each naming the one it follows.
    """
    if named is not None:
        return Unit(named, "dates, or in the unit of their column")
    middle = float(np.median(np.abs(values)))
    for least, seconds in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)):
        if middle >= least:
            return Unit(seconds, f"{_NAMES[seconds]}, by the size of the numbers")
    if hashed:
        whole = bool((values == np.rint(values)).all())
        if whole or not chained:
            return Unit(1e-3, "milliseconds, as in Mooncake's traces")
        return Unit(1.0, "seconds, as in Bailian's traces")
    return Unit(1.0, "seconds")
