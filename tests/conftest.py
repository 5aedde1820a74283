"""Options of the whole suite; pytest reads new options only from the root conftest."""

import os
from pathlib import Path

import hypothesis
import pytest

# Use one BLAS thread, as the command line does, because the matrices here are small.
# numpy reads this variable only when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# There are no deadlines, because the machine may be busy. CI uses fixed examples, and
# developers' runs search for new ones.
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
