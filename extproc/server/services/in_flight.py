"""Tracks requests in flight whose end will be reported, for exact counts by pool.

A request's end is reported if the stream stays open for the response, if Envoy's access
log covers it, or if a gateway calls Observe. Only these requests are tracked. Any other
request counts as in flight until the servers of its pool next report their load, which
replaces the count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_FLIGHTS = 16_384
"""Maximum number of tracked requests. If there are more, the oldest are dropped, since
their log entries were lost or went to another process."""


class InFlight:
    """Tracks the pool of each request in flight.

    Args:
        landed: called with the pool of each request that ends.
        limit: maximum number of tracked requests, at least 1.
    """

    def __init__(self, landed: Callable[[str], None], limit: int = MAX_FLIGHTS) -> None:
        self._landed = landed
        self._limit = limit
        # In a plain dict, a search for the first key visits all deleted keys before it.
        self._pools: OrderedDict[Hashable, list[str]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def began(self, key: Hashable, pool: str) -> None:
        """Start tracking a request.

        Args:
            key: value that identifies the request when it ends. Equal requests have
                equal decision tokens, so it does not matter which of the requests ends
                first.
        """
        if self._count >= self._limit:
            self._take(next(iter(self._pools)))
        self._pools.setdefault(key, []).append(pool)
        self._count += 1

    def ended(self, key: Hashable) -> None:
        """Record the end of a request; the end of an untracked request is ignored."""
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
