"""The type of JSON objects from outside: bodies, logs and records of other programs.

Documents that this program writes have types of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""An object whose keys are known only when it is read."""
