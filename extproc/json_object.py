"""Type of JSON objects that other programs wrote: bodies, logs and records.

Documents that this program writes have types of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""A JSON object with unknown keys."""
