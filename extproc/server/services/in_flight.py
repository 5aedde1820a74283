"""Requests in flight whose end will be reported, for exact counts by pool.

A request's end is reported if the stream stays open for the response, if Envoy's access
log covers it, or if a gateway calls Observe. Only these requests are tracked; any other
request counts until the pool's servers next report their load, which replaces the
count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_FLIGHTS = 16_384
"""Maximum requests tracked. Above it the oldest are dropped: their log entry was lost
or went to another process."""


class InFlight:
    """Tracks the pool of each request in flight.

    Args:
        landed: called with the pool of each request that ends.
        limit: maximum requests tracked, at least 1.
    """

    def __init__(self, landed: Callable[[str], None], limit: int = MAX_FLIGHTS) -> None:
        self._landed = landed
        self._limit = limit
        # In a plain dict, finding the first key means skipping all keys deleted before
        # it.
        self._pools: OrderedDict[Hashable, list[str]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def began(self, key: Hashable, pool: str) -> None:
        """Start tracking a request.

        Args:
            key: identifies the request when it ends. Equal requests have equal decision
                tokens; it does not matter which of them ends first.
        """
        if self._count >= self._limit:
            self._take(next(iter(self._pools)))
        self._pools.setdefault(key, []).append(pool)
        self._count += 1

    def ended(self, key: Hashable) -> None:
        """Record the end of a request; unknown ones (late, not ours) are ignored."""
        pool = self._take(key)
        if pool is not None:
            self._landed(pool)

    def _take(self, key: Hashable) -> str | None:
        pools = self._pools.get(key)
        if not pools:
            return None
        pool = pools.pop()
        if not pools:
            del self._pools[key]
        self._count -= 1
        return pool
