"""A worker exits in every possible way; a stand-in replaces the supervisor."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from extproc.server.workers.supervisor import WorkerProcess, _next_delay
from extproc.server.workers.worker import Worker

LIMIT_S = 20.0
ENDS_AT_ONCE = [sys.executable, "-c", ""]
WAITS_FOR_INPUT = [sys.executable, "-c", "input()"]


class Admin:
    """A stand-in for the supervisor's admin port, which counts starts and restarts."""

    def __init__(self, *, is_ready: bool) -> None:
        self.starts = 0
        self.restarts = 0
        self._is_ready = is_ready

    def started(self, worker: int, pid: int) -> None:
        self.starts += 1

    def restarted(self, worker: int) -> None:
        self.restarts += 1

    async def until_ready(self, worker: int) -> None:
        if not self._is_ready:
            await asyncio.Event().wait()


def kept(
    command: Sequence[str],
    *,
    is_ready: bool,
    use: Callable[[WorkerProcess, Admin], Awaitable[None]] | None = None,
) -> int:
    """Run the keeper of a worker, meanwhile call ``use``, and return the keeper's
    result.
    """
    admin: Any = Admin(is_ready=is_ready)
    keeper = WorkerProcess(Worker(Path("/nowhere"), 0), command, admin)

    async def scenario() -> int:
        async with asyncio.timeout(LIMIT_S):
            keeping = asyncio.create_task(keeper.keep())
            if use is not None:
                await use(keeper, admin)
            return await keeping

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("", 1),
        ("import os; os.kill(os.getpid(), 9)", 1),
    ],
    ids=["status", "ended well", "killed"],
)
def test_a_worker_that_was_never_ready_is_not_started_again(
    code: str, status: int
) -> None:
    assert kept([sys.executable, "-c", code], is_ready=False) == status


async def restarted(admin: Admin, times: int) -> None:
    while admin.restarts < times:
        await asyncio.sleep(0.005)


def test_one_that_was_is_started_again_after_a_while_that_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use(keeper: WorkerProcess, admin: Admin) -> None:
        await restarted(admin, 2)
        keeper.stop()

    assert kept(ENDS_AT_ONCE, is_ready=True, use=use) == 0
    delays = [record.fields["restart_in_s"] for record in caplog.records]  # type: ignore[attr-defined]
    assert delays[:2] == [0.2, 0.4]


def test_none_is_started_once_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    admins: list[Admin] = []

    async def use(keeper: WorkerProcess, admin: Admin) -> None:
        admins.append(admin)
        while not caplog.records:  # the worker has exited and will be restarted
            await asyncio.sleep(0.005)
        keeper.stop()

    assert kept(ENDS_AT_ONCE, is_ready=True, use=use) == 0
    assert admins[0].starts == 1


def test_one_that_is_being_started_ends_as_well() -> None:
    async def use(keeper: WorkerProcess, admin: Admin) -> None:
        await asyncio.sleep(0)  # the worker is starting and cannot receive a signal yet
        assert not admin.starts
        keeper.stop()

    assert kept(WAITS_FOR_INPUT, is_ready=False, use=use) == 0


def test_the_while_is_bounded_and_ends_with_a_worker_that_lived() -> None:
    delay_s = 0.1
    for _ in range(20):
        delay_s = _next_delay(delay_s, lived_s=0.0)
    assert delay_s == 10.0
    assert _next_delay(delay_s, lived_s=60.0) == 0.1
