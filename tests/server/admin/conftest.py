"""Fixture: the live page in a real Chromium."""

import contextlib
from collections.abc import Iterator

import pytest

from .browser import CHROMIUM
from .live_page import Session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    session = Session(tmp_path_factory.mktemp("chromium"))
    stack = contextlib.AsyncExitStack()
    with session.runner:
        try:
            session.runner.run(session.open(stack))
            yield session
        finally:  # an open tab would fail a test in another file
            session.runner.run(stack.aclose())
