"""What tests need on a machine that is far too busy.

Envoy gives a router a second to answer, and takes one for dead that twice did not. Most
tests are about what is decided, not about that: a pause of the machine must not make
another decision of theirs. Those about time itself run what is shipped.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE_S = 60.0
"""For what takes milliseconds on a machine that has nothing else to do."""

_LONGER = {
    "message_timeout": "20s",
    "connect_timeout": "20s",
    "connection_keepalive": {"interval": "30s", "timeout": "30s"},
}


def be_patient(config: Any) -> None:
    """Let Envoy wait for whatever takes its time; edits a part of a configuration."""
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
    """Wait until ``condition()`` is true, and return what it was."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)
    return value
