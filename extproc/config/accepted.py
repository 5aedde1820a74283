"""Checks of setting values that several settings share."""

from __future__ import annotations

import math
import re

from extproc.address import Address
from extproc.schema import check


def _is_address(value: str, unix: bool) -> bool:
    try:
        address = Address.parse(value)
    except ValueError:
        return False
    return unix or not address.is_unix


POSITIVE = check("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = check("0 or more", lambda value: 0 <= value < math.inf)
ADDRESS = check("HOST:PORT or unix:PATH", lambda value: _is_address(value, unix=True))
HOST_PORT = check("HOST:PORT", lambda value: _is_address(value, unix=False))
HEADER = check(
    "a header name in lower case",
    lambda value: re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", value),
)
PREFIXES = check(
    'a list of paths like /openai/v1, or ""',
    lambda values: (
        bool(values) and all(re.fullmatch(r"(/[^\s/?#]+)*/?", path) for path in values)
    ),
)
NAME = check(
    "letters, digits, - and _, at most 63",
    lambda value: re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value),
)
MODEL_NAME = check(
    "1 to 200 characters of printable ASCII without blanks",
    lambda value: re.fullmatch(r"[!-~]{1,200}", value),
)
MODEL_NAMES = check(
    f"a list of names, each {MODEL_NAME['accepted']}",
    lambda values: all(MODEL_NAME["valid"](value) for value in values),
)
FILE = check("a file name", lambda value: value and "\0" not in value)
BASE_URLS = check(
    "a list of http://HOST:PORT or https://HOST:PORT",
    lambda values: all(re.fullmatch(r"https?://[^\s/@]+/?", url) for url in values),
)
