"""Requests in flight whose end will be known, so that a pool's count can be exact.

Of some requests the end is known: the stream stays open for the response, Envoy's
access log tells of it, or a gateway comes back with the outcome. Only those are here;
a request whose end is not reported counts until the pool's servers report their load
again, which replaces every count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_FLIGHTS = 16_384
"""Requests on their way that are remembered. The oldest go first: of those the log
record was lost, or went to another process."""


class InFlight:
    """Who is on the way to which pool.

    Args:
        landed: called with the pool of each request that has ended.
        limit: requests remembered, at least 1.
    """

    def __init__(self, landed: Callable[[str], None], limit: int = MAX_FLIGHTS) -> None:
        self._landed = landed
        self._limit = limit
        # A plain dict looks for its first key among all that have left before it.
        self._pools: OrderedDict[Hashable, list[str]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def began(self, key: Hashable, pool: str) -> None:
        """Remember a request.

        Args:
            key: identifies the request when it ends. Equal requests have equal decision
                tokens; which of them ends first does not matter.
        """
        if self._count >= self._limit:
            self._take(next(iter(self._pools)))
        self._pools.setdefault(key, []).append(pool)
        self._count += 1

    def ended(self, key: Hashable) -> None:
        """Take note of an end; one that is not known is somebody else's, or late."""
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
