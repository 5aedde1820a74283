import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from extproc.config import LogConfig, LogFormat, LogLevel
from extproc.server.logs import WIRE, OncePerInterval, configure_logging, log_loop_error

logger = logging.getLogger("extproc.server.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, wire = logging.getLogger(), logging.getLogger(WIRE)
    handlers, levels = root.handlers[:], (root.level, wire.level)
    yield
    root.handlers[:] = handlers
    for changed, level in zip((root, wire), levels, strict=True):
        changed.setLevel(level)


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


def test_frames_are_shown_if_they_are_wanted_and_never_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wire = logging.getLogger(WIRE)
    for config in (LogConfig(level=LogLevel.DEBUG), LogConfig(wire=True)):
        configure_logging(config)
        wire.debug("frame", extra={"fields": {"wire": "< PING"}})

    (line,) = logged(capsys).splitlines()
    assert line.endswith("debug frame wire=< PING")


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


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("log_format", LogFormat)
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("a secret of the body"), "ValueError"),
        (OSError("a secret of the body"), "OSError"),
        (OSError(28, "No space left", "/var/lib"), "OSError: No space left"),
    ],
)
def test_an_exception_is_its_kind_and_its_place(
    error: Exception,
    shown: str,
    log_format: LogFormat,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogConfig(format=log_format))
    try:
        fail(error)
    except Exception:
        logger.exception("fault")

    said = logged(capsys)
    assert shown in said
    assert "in fail" in said
    assert "secret" not in said


def test_an_error_that_nobody_took_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogConfig())

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        failing = ValueError("a secret of the body")
        done = loop.create_future()
        loop.call_soon(fail, failing)
        loop.call_soon(done.set_result, None)
        await done

    asyncio.run(run())

    said = logged(capsys)
    assert "loop_error what=Exception in callback fail\n" in said
    assert said.endswith("ValueError\n")
    assert "body" not in said


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


def test_one_record_an_interval_passes(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 5.0
    source, target = logging.getLogger("noisy"), logging.getLogger("quiet")
    source.propagate = False
    handler = OncePerInterval(target, 60.0, lambda: now_s)
    source.addHandler(handler)
    try:
        for second in (5.0, 6.0, 64.9, 65.0, 66.0):
            now_s = second
            source.warning("collector is away, at %s", second)
    finally:
        source.removeHandler(handler)
    assert [record.getMessage() for record in caplog.records] == [
        "collector is away, at 5.0",
        "collector is away, at 65.0",
    ]
