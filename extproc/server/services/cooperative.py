"""Long computations in steps, so that the event loop can do other work between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Later = Callable[[Callable[[], None]], object]


class TimeSlices:
    """Runs one step of each pending task in turn, one step per event-loop iteration.

    Other work waits for at most one step, however many bodies are parsed at once.

    Args:
        later: schedules a call for the loop's next iteration; the loop's ``call_soon``.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        self._work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def add(self, step: Callable[[], bool], done: Callable[[], None]) -> None:
        """Add a task, to be run in turn with the others.

        An exception in ``step`` or ``done`` ends this task and is raised in the event
        loop.

        Args:
            step: runs the next step; returns false if no step is left.
            done: called after the last step.
        """
        self._work.append((step, done))
        if len(self._work) == 1:
            self._later(self._turn)

    async def finish(self, step: Callable[[], bool]) -> None:
        """Run a task to its end, in turn with the others.

        If the caller is cancelled, the remaining steps are skipped. Exceptions of
        ``step`` are raised by this method.
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
        step, done = self._work[0]  # stays listed: ``add`` schedules no second turn
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
