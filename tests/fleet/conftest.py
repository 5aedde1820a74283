"""Fixtures that run a test with each recording of vLLM's scheduler."""

import gzip
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from extproc.fleet.scheduler import SchedulerLimits

OWN_RECORDINGS = Path(__file__).parent / "recordings"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" not in metafunc.fixturenames:
        return
    folders = [OWN_RECORDINGS]
    given: Path | None = metafunc.config.getoption("--recordings")
    if given is not None:
        if not given.is_dir():
            raise pytest.UsageError(f"--recordings: {given}, expected a folder")
        folders.append(given)
    files = [
        path
        for folder in folders
        for pattern in ("*.json.gz", "*.json")
        for path in sorted(folder.glob(pattern))
    ]
    metafunc.parametrize(
        "recording",
        files,
        ids=[f"{path.parent.name}/{path.name.split('.')[0]}" for path in files],
        indirect=True,
    )


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.fixture
def recorded_limits(recording: dict[str, Any]) -> SchedulerLimits:
    """Return a recording's limits; a vLLM switch that is missing counts as off."""
    known = {field.name for field in fields(SchedulerLimits)}
    switches = {"enable_prefix_caching": False, "async_scheduling": False}
    return SchedulerLimits(
        **switches | {k: v for k, v in recording.items() if k in known}
    )
