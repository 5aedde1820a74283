import json
import logging
from collections.abc import Iterator

import pytest

from extproc.config import LogConfig, LogFormat, LogLevel
from extproc.server.logs import configure_logging

logger = logging.getLogger("extproc.server.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_text_is_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogConfig())

    logger.info("serving", extra={"fields": {"port": 9002, "listen": "0.0.0.0"}})

    time, level, *rest = logged(capsys).split()
    assert time.endswith("Z")
    assert level == "info"
    assert rest == ["serving", "port=9002", "listen=0.0.0.0"]


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogConfig(format=LogFormat.JSON))

    logger.warning("odd", extra={"fields": {"at": "a\nb", "what": LogFormat.TEXT}})
    logger.error("plain")

    first, second = map(json.loads, logged(capsys).splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "logger": "extproc.server.test",
        "event": "odd",
        "at": "a\nb",
        "what": "text",
    }
    assert second["event"] == "plain"


@pytest.mark.parametrize("log_format", LogFormat)
def test_an_exception_is_shown(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogConfig(format=log_format))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("fault")

    assert "ZeroDivisionError" in logged(capsys)


@pytest.mark.parametrize("level", LogLevel)
def test_the_level_is_the_configurations(
    level: LogLevel, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogConfig(level=level))

    for name in LogLevel:
        logger.log(logging.getLevelNamesMapping()[name.upper()], "at_%s", name)

    levels = list(LogLevel)
    events = [line.split()[2] for line in logged(capsys).splitlines()]
    assert events == [f"at_{name}" for name in levels[levels.index(level) :]]
