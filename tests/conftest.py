"""Options of the whole suite: an initial conftest is the only place that adds them."""

import os
from pathlib import Path

import pytest

# As the command line does, and before numpy is loaded: its matrices here are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "faults: something breaks while clients send through a real Envoy"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="folder of vLLM scheduler recordings (*.json.gz, *.json) to check as well",
    )
