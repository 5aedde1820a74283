"""Work advances one step per turn, even if other work starts, fails or is abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

import pytest

from extproc.server.services.cooperative import TimeSlices

Calls = list[Callable[[], None]]


def test_all_work_goes_on_by_one_step_a_turn() -> None:
    later: Calls = []
    slices = TimeSlices(later.append)
    done: list[str] = []
    steps: list[str] = []

    def add(name: str, count: int) -> None:
        left = iter(range(count - 1, -1, -1))

        def step() -> bool:
            steps.append(name)
            return next(left) > 0

        slices.add(step, lambda: done.append(name))

    add("long", 4)
    add("short", 2)
    while later:
        assert len(later) == 1  # however much work there is
        before = len(steps)
        later.pop()()
        assert len(steps) == before + 1

    assert steps == ["long", "short", "long", "short", "long", "long"]
    assert done == ["short", "long"]

    add("again", 1)
    later.pop()()
    assert done[-1] == "again"
    assert not later


def test_work_that_begins_more_is_alone_in_asking_for_a_turn() -> None:
    later: Calls = []
    slices = TimeSlices(later.append)
    done: list[str] = []

    def step() -> bool:
        slices.add(lambda: False, lambda: done.append("begun by a step"))
        return False

    def end() -> None:
        done.append("first")
        slices.add(lambda: False, lambda: done.append("begun by an end"))

    slices.add(step, end)
    while later:
        assert len(later) == 1
        later.pop()()

    assert done == ["first", "begun by a step", "begun by an end"]


def test_work_that_fails_holds_up_no_other() -> None:
    later: Calls = []
    slices = TimeSlices(later.append)
    done: list[str] = []

    def fail() -> NoReturn:
        raise ZeroDivisionError

    slices.add(fail, lambda: done.append("of a step that failed"))
    slices.add(lambda: False, fail)
    slices.add(lambda: False, lambda: done.append("good"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            later.pop()()  # the event loop reports the error
        assert len(later) == 1
    later.pop()()

    assert done == ["good"]
    assert not later


async def finish_beside_others(step: Callable[[], bool], slices: TimeSlices) -> int:
    """Finish some work, and return how often another task ran during the work."""
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(other())
    try:
        await slices.finish(step)
    finally:
        beside.cancel()
    return others


def make_turns() -> TimeSlices:
    return TimeSlices(asyncio.get_running_loop().call_soon)


def test_who_waits_for_work_lets_others_go_on() -> None:
    async def run() -> None:
        left = list(range(100))
        others = await finish_beside_others(lambda: bool(left.pop()), make_turns())
        assert not left
        assert others >= 100

    asyncio.run(run())


def test_who_waits_for_work_that_fails_is_told() -> None:
    async def run() -> None:
        def fail() -> NoReturn:
            raise ZeroDivisionError

        slices = make_turns()
        with pytest.raises(ZeroDivisionError):
            await slices.finish(fail)
        await slices.finish(lambda: False)

    asyncio.run(run())


def test_who_waits_no_longer_leaves_the_rest_undone() -> None:
    async def run() -> None:
        done = 0

        def step() -> bool:
            nonlocal done
            done += 1
            return True

        slices = make_turns()
        waiting = asyncio.ensure_future(slices.finish(step))
        while done < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        at_most = done + 1
        await slices.finish(lambda: False)
        await slices.finish(lambda: False)
        assert done <= at_most

    asyncio.run(run())
