"""Bodies that were requested: how long to wait for them, and what their loss teaches.

A gateway that cannot hand a body over says so (413), or nothing at all: the request
then hangs there for as long as its client does. What is waited for too long is given
up; what is lost is counted, logged, and lowers what is requested (``GatewayLimit``).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from extproc.server.in_force import InForce
from extproc.server.observe.counters import FastCounter

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 60.0
"""From one line in the log to the next."""

Later = Callable[[float, Callable[[], None]], object]
"""Runs a call in so many seconds, on the event loop's thread."""


class Lost(StrEnum):
    """How it showed that a requested body will not come. A metric's label."""

    TIMEOUT = "timeout"
    """It did not come in ``server.body_timeout_s``."""
    REFUSED = "refused"
    """The gateway answered 413."""
    ENDED = "ended"
    """The gateway ended the stream: the client went away, or was refused unseen."""


class Waiting(Protocol):
    """A stream that waits for a body."""

    def body_is_late(self) -> None:
        """Wait no more."""


class RequestedBodies:
    """Gives up bodies that do not come, and takes note of those that are lost.

    All wait equally long, so that the first that began is the first that is late: one
    timer serves them all, and a body that comes in time costs two updates of a table.

    Args:
        in_force: has the time that a body may take, and the limit that is learned.
        later: for the timer.
        clock: seconds that never jump.
        lost: counts the bodies lost, by how.
    """

    def __init__(
        self,
        in_force: InForce,
        later: Later,
        clock: Callable[[], float],
        lost: FastCounter,
    ) -> None:
        self._in_force = in_force
        self._later = later
        self._clock = clock
        self._lost = lost
        self._began: OrderedDict[Waiting, float] = OrderedDict()
        self._looks = False
        self._retries = False
        self._log_from_s = clock()

    def __len__(self) -> int:
        return len(self._began)

    def began(self, stream: Waiting) -> None:
        """Wait for a stream's body from now on."""
        self._began[stream] = self._clock()
        if not self._looks:
            self._looks = True
            self._later(self._timeout_s, self._look)

    def ended(self, stream: Waiting) -> None:
        """Wait no more; of a stream that did not wait, without effect."""
        self._began.pop(stream, None)

    def lost(self, how: Lost) -> None:
        """Count and log a body that was lost; its exchange has learned from it."""
        self._lost.add(how)
        now, limit = self._in_force.now, self._in_force.now.gateway_limit
        if self._clock() >= self._log_from_s:
            self._log_from_s = self._clock() + LOG_INTERVAL_S
            fields = {
                "how": how,
                "lost": self._lost.total(),
                "requested_up_to_bytes": limit.limit_bytes
                or now.settings.max_body_bytes,
                "check": "the gateway's body buffer limit and HTTP/2 stream window",
            }
            logger.warning("body_not_handed_over", extra={"fields": fields})
        if limit.limit_bytes is not None and not self._retries:
            self._retries = True
            self._later(limit.pause_s, self._retry)

    @property
    def _timeout_s(self) -> float:
        return self._in_force.now.config.server.body_timeout_s

    def _look(self) -> None:
        """Give up what is late, and look again when the next one will be."""
        now_s, timeout_s = self._clock(), self._timeout_s
        while self._began:
            stream, began_s = next(iter(self._began.items()))
            left_s = began_s + timeout_s - now_s
            if left_s > 0:
                self._later(left_s, self._look)
                return
            del self._began[stream]
            stream.body_is_late()
        self._looks = False

    def _retry(self) -> None:
        limit = self._in_force.now.gateway_limit
        self._retries = limit.limit_bytes is not None
        if self._retries:
            limit.try_again()
            self._later(limit.pause_s, self._retry)
