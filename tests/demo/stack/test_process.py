import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extproc.demo.stack.process import Child, ChildError, answers_200, free_ports

LIMIT_S = 60.0
"""Timeout for steps that take milliseconds on an idle machine."""

# A child that reports that it is running, and exits with status 3 on request.
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("up", flush=True)
while True:
    time.sleep(0.01)
"""
STUBBORN = POLITE.replace("lambda *_: sys.exit(3)", "signal.SIG_IGN")


@pytest.fixture
def child(tmp_path: Path, request: pytest.FixtureRequest) -> Child:
    return Child("child", [sys.executable, "-c", request.param], tmp_path / "child.log")


def is_up(child: Child) -> bool:
    return "up" in child.log.read_text()


@pytest.mark.parametrize("child", [POLITE], indirect=True)
def test_a_child_starts_is_ready_and_stops(child: Child) -> None:
    with child:
        child.wait_ready(lambda: is_up(child), LIMIT_S)
        assert child.running
        assert child.stop(grace_s=LIMIT_S) == 3
    assert not child.running


@pytest.mark.parametrize("child", [POLITE], indirect=True)
def test_a_child_may_start_again(child: Child) -> None:
    for _ in range(2):
        with child:
            child.wait_ready(lambda: is_up(child), LIMIT_S)


@pytest.mark.parametrize("child", [POLITE], indirect=True)
def test_a_child_starts_once(child: Child) -> None:
    with child, pytest.raises(ChildError, match="running already"):
        child.start()


@pytest.mark.parametrize("child", [STUBBORN], indirect=True)
def test_a_child_that_will_not_go_is_killed(child: Child) -> None:
    with child:
        child.wait_ready(lambda: is_up(child), LIMIT_S)
        assert child.stop(grace_s=0.05) == -9


@pytest.mark.parametrize("child", [POLITE], indirect=True)
def test_a_paused_child_stops_as_well(child: Child) -> None:
    with child:
        child.wait_ready(lambda: is_up(child), LIMIT_S)
        child.pause()
        assert child.stop(grace_s=LIMIT_S) == 3


@pytest.mark.parametrize(
    "child", ["print('no such luck'); raise SystemExit(1)"], indirect=True
)
def test_a_child_that_ends_early_is_reported_with_its_last_words(child: Child) -> None:
    with (
        child,
        pytest.raises(
            ChildError,
            match=r"child ended before it was ready\s+no such luck\s+log: .*child\.log",
        ),
    ):
        child.wait_ready(lambda: False, LIMIT_S)


@pytest.mark.parametrize("child", [POLITE], indirect=True)
def test_a_child_that_is_never_ready_is_reported(child: Child) -> None:
    with child, pytest.raises(ChildError, match=r"not ready within 0\.1 s"):
        child.wait_ready(lambda: False, 0.1)


@pytest.mark.parametrize(
    "child",
    [f"import subprocess, sys; subprocess.run([sys.executable, '-c', {POLITE!r}])"],
    indirect=True,
)
def test_what_a_child_started_ends_with_it(child: Child) -> None:
    """The grandchild also has the log open; after both have exited, no process has."""
    with child:
        child.wait_ready(lambda: is_up(child), LIMIT_S)
        child.kill()
    deadline = time.monotonic() + LIMIT_S
    while any(_has_open(path, child.log) for path in Path("/proc").glob("[0-9]*/fd")):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "child",
    [f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {POLITE!r}])"],
    indirect=True,
)
def test_what_a_child_left_behind_is_ended(child: Child) -> None:
    with child:
        assert child.wait(LIMIT_S) == 0
        deadline = time.monotonic() + LIMIT_S
        while not is_up(child):
            assert time.monotonic() < deadline
    while any(_has_open(path, child.log) for path in Path("/proc").glob("[0-9]*/fd")):
        assert time.monotonic() < deadline


def _has_open(descriptors: Path, file: Path) -> bool:
    try:
        return any(each.resolve() == file for each in descriptors.iterdir())
    except OSError:
        return False


def test_stopping_what_never_started_is_nothing(tmp_path: Path) -> None:
    assert Child("child", ["true"], tmp_path / "log").stop() is None


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_no_two_processes_get_the_same_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "from extproc.demo.stack.process import free_ports\n"
            "print(*free_ports(1), flush=True)\n"
            "input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        candidates = itertools.chain([theirs, theirs], itertools.count(theirs + 1))
        monkeypatch.setattr(
            random.SystemRandom, "randrange", lambda *_: next(candidates)
        )
        assert theirs not in free_ports(1)
        other.communicate("\n")


def test_a_process_that_had_ports_ends_without_a_word() -> None:
    program = "from extproc.demo.stack.process import free_ports; free_ports(2)"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_answers_on_a_free_port() -> None:
    (port,) = free_ports(1)
    assert not answers_200(f"http://127.0.0.1:{port}/")
