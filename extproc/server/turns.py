"""Long work in steps, between which the event loop does what else there is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Later = Callable[[Callable[[], None]], object]


class Turns:
    """Does one step of all the work there is at each turn of the event loop.

    However many bodies are read at one time, what comes in between waits for one step.

    Args:
        later: runs a call at the loop's next turn; its ``call_soon``.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        self._work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def add(self, step: Callable[[], bool], done: Callable[[], None]) -> None:
        """Do some work, in turn with what else there is; neither call may raise.

        Args:
            step: does the next of it; false once there is nothing left to do.
            done: called after that.
        """
        self._work.append((step, done))
        if len(self._work) == 1:
            self._later(self._turn)

    def _turn(self) -> None:
        step, done = self._work.popleft()
        if step():
            self._work.append((step, done))
        else:
            done()
        if self._work:
            self._later(self._turn)
