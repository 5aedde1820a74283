"""Options of the whole suite; pytest reads new options only from the root conftest."""

import os
from pathlib import Path

import hypothesis
import pytest

# As the command line does, this must be set before numpy is loaded: its matrices here
# are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# No deadlines: the machine may be busy. CI uses fixed examples; developers' runs search
# for new ones.
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
