"""What the tests see of an Envoy: its ports and its statistics."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.parse
import urllib.request

from ..patience import PATIENCE_S


def listens(port: int) -> bool:
    """Return whether a program listens on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def stat(admin_url: str, name: str) -> int:
    """Return the sum of Envoy's counters or gauges whose whole names match a pattern."""
    pattern = urllib.parse.quote(f"^{name}$")
    url = f"{admin_url}/stats?format=json&filter={pattern}"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        found = json.load(response)["stats"]
    return sum(int(each["value"]) for each in found if "name" in each)
