"""Timeouts for tests on a heavily loaded machine.

By default Envoy waits one second for the router, and ejects the router after two
timeouts. Most tests check decisions, so a pause of the machine must not change the
results. Tests of the timeouts themselves use the shipped values.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE_S = 60.0
"""Timeout in seconds for steps that take milliseconds on an idle machine."""

_LONGER = {
    "message_timeout": "20s",
    "connect_timeout": "20s",
    "connection_keepalive": {"interval": "30s", "timeout": "30s"},
}


def be_patient(config: Any) -> None:
    """Lengthen the timeouts in any part of an Envoy configuration."""
    if isinstance(config, list):
        for each in config:
            be_patient(each)
    elif isinstance(config, dict):
        config |= {key: value for key, value in _LONGER.items() if key in config}
        for check in config.get("health_checks", ()):
            check["timeout"] = "20s"
        for each in config.values():
            be_patient(each)


def wait_until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Wait until ``condition()`` is true, and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)
    return value
