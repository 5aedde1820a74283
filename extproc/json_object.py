"""Type of JSON objects from outside: bodies, logs and records of other programs.

Documents written by this program have types of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""A JSON object with unknown keys."""
