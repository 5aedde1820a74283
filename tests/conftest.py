"""Options of the whole suite: an initial conftest is the only place that adds them."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="folder of vLLM scheduler recordings (*.json.gz, *.json) to check as well",
    )
