"""Options of the whole suite: an initial conftest is the only place that adds them."""

import os
from pathlib import Path

import hypothesis
import pytest

# As the command line does, and before numpy is loaded: its matrices here are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# A test never fails for being slow: the machine may be busy with others.
# In CI the examples are the same each time: new ones are looked for by developers.
hypothesis.settings.register_profile(
    "here", deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="folder of vLLM scheduler recordings (*.json.gz, *.json) to check as well",
    )
