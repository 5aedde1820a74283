"""The arrival times of records, with the possible keys and units.

A key may contain the unit (``t_s``, ``timestamp_ms``, ``startTimeUnixNano``); a date
needs no unit. Otherwise the unit is that of the format, or is derived from the size of
the numbers. All times in a file have one unit, which is determined from all of them.
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

#: Keys of points in time. Those of the arrival come first, and those of an end or a
#: duration are left out.
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
#: For each plain key, its position in the list above, and the length of its unit in
#: seconds (None if the key does not name a unit).
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
    """The arrival time of a request as recorded."""

    key: str
    """The plain key of the value."""
    value: float
    """A number in the given unit, or seconds since 1970 for a date."""
    unit_s: float | None
    """Length of the unit in seconds; None if neither the key nor the value has a unit.
    """


def find_instant(record: Sequence[Level]) -> Instant | None:
    """Return the arrival time of a request, or None if the record has none.

    Raises:
        FieldError: the value is neither a number nor a date.
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
    """Return a date in seconds since 1970; a date without a time zone is in UTC.

    Accepts ISO 8601, also with "/" between year, month and day or "UTC" at the end; the
    common log format's "10/May/2024:13:55:36 +0000"; and RFC 2822.
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
    raise FieldError(f"{text!r}; expected seconds or an ISO 8601 time")


def _common_log(text: str) -> datetime:
    return datetime.strptime(text.strip("[]"), "%d/%b/%Y:%H:%M:%S %z")


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of the times in a file."""

    seconds: float
    """Length of the unit in seconds."""
    reason: str
    """How the unit was determined, in a few words."""


_NAMES = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "ns"}


def unit_of(
    values: npt.NDArray[np.float64],
    named: float | None,
    *,
    hashed: bool,
    chained: bool,
) -> Unit:
    """Return the unit of all times in a file.

    Mooncake uses milliseconds, Bailian seconds with three decimals. Both formats name
    the prompt count ``input_length``. Numbers above 10^11 cannot be seconds since 1970,
    numbers above 10^14 cannot be milliseconds, and numbers above 10^17 cannot be
    microseconds.

    Args:
        values: the times, at least one.
        named: length in seconds of the unit that the key contains, or None.
        hashed: whether the records have Mooncake's or Bailian's hashes.
        chained: whether the records are Bailian's, each of which names its predecessor.
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
