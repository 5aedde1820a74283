"""Timeouts for requested bodies, and learning from lost bodies.

If a gateway cannot pass a body to the router, the gateway either answers 413 or does
nothing. Without an answer, the request hangs for as long as its client waits. The
router therefore stops waiting for a body after a timeout. Each lost body is counted and
logged, and lowers the maximum size of bodies to request (``GatewayLimit``).
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
"""Minimum seconds between two log lines."""

Later = Callable[[float, Callable[[], None]], object]
"""Function that schedules a call on the event loop's thread after a number of
seconds."""


class Lost(StrEnum):
    """Reason why a requested body is lost. A closed set, used as a metric label."""

    TIMEOUT = "timeout"
    """The body did not arrive within ``server.body_timeout_s``."""
    REFUSED = "refused"
    """The gateway answered 413."""
    ENDED = "ended"
    """The gateway ended the stream: the client disconnected, or the request was
    rejected."""


class Waiting(Protocol):
    """A stream that waits for a requested body."""

    def body_is_late(self) -> None:
        """Stop waiting for the body."""


class RequestedBodies:
    """Stops waiting for bodies after a timeout, and records lost bodies.

    All timeouts are equal, so the body that was requested first reaches its timeout
    first. One timer is therefore enough, and a body that arrives in time takes only two
    dictionary updates.

    Args:
        in_force: holder of the timeout and of the learned limit.
        later: schedules the timer.
        clock: monotonic clock in seconds.
        lost: counter of lost bodies, by symptom.
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
        """Start the timeout of a stream's body."""
        self._began[stream] = self._clock()
        if not self._looks:
            self._looks = True
            self._later(self._timeout_s, self._look)

    def ended(self, stream: Waiting) -> None:
        """Stop the timeout of a stream's body, if the body has a timeout."""
        self._began.pop(stream, None)

    def lost(self, how: Lost) -> None:
        """Count and log a lost body, from which its exchange has already learned."""
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
        """Stop waiting for bodies past their timeout, and schedule the next check."""
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
