"""Long work in steps, between which the event loop does what else there is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Later = Callable[[Callable[[], None]], object]


class TimeSlices:
    """Does one step of all the work there is at each turn of the event loop.

    However many bodies are read at one time, what comes in between waits for one step.

    Args:
        later: runs a call at the loop's next turn; its ``call_soon``.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        self._work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def add(self, step: Callable[[], bool], done: Callable[[], None]) -> None:
        """Do some work, in turn with what else there is.

        An exception of either call ends this work and is raised in the event loop.

        Args:
            step: does the next of it; false once there is nothing left to do.
            done: called after that.
        """
        self._work.append((step, done))
        if len(self._work) == 1:
            self._later(self._turn)

    async def finish(self, step: Callable[[], bool]) -> None:
        """Do some work, in turn with what else there is, until there is none left.

        If the caller is cancelled while it waits, the rest stays undone. Exceptions of
        ``step`` are raised here.
        """
        done = asyncio.get_running_loop().create_future()

        def next_step() -> bool:
            try:
                return not done.done() and step()
            except Exception as error:
                done.set_exception(error)
                return False

        def end() -> None:
            if not done.done():
                done.set_result(None)

        self.add(next_step, end)
        await done

    def _turn(self) -> None:
        step, done = self._work[0]  # stays there: what it adds must not ask for a turn
        goes_on = False
        try:
            goes_on = step()
            if not goes_on:
                done()
        finally:
            if goes_on:
                self._work.rotate(-1)
            else:
                self._work.popleft()
            if self._work:
                self._later(self._turn)
