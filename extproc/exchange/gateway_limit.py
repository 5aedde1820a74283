"""The gateway's limit for bodies, learned from bodies that never arrive.

The router cannot see a gateway's buffer limit or HTTP/2 window. If the router requests
the full body and it exceeds that limit, the gateway either rejects it (413) or keeps it
waiting until a timeout. After ``LOSSES`` such bodies, if none of their size arrived in
between, the router requests only bodies up to the largest size that arrived. From time
to time it tries a larger body again.
"""

from __future__ import annotations

LOSSES = 3
"""Number of lost bodies after which a limit is assumed. One lost body may be due to a
client that disconnected, three in a row hardly are."""
ARRIVALS = 10
"""Number of bodies, each as large as a lost one, that must arrive before that loss is
forgotten. Clients of HTTP/1.1 and HTTP/2 have different limits at the same gateway, so
a few arrivals do not disprove a limit."""
SMALL_ARRIVALS = 100
"""Like ``ARRIVALS``, for small bodies of unknown length. Their arrival says little
about a limit, but something about clients that disconnect."""
FLOOR_BYTES = 16 << 10
"""Bodies up to this size are always requested. The size is half of the smallest limit
in use, which is 32 KiB in Envoy Gateway's listeners."""
FIRST_PAUSE_S = 600.0
"""Seconds from the discovery of a limit to the first attempt to exceed it."""
LONGEST_PAUSE_S = 6 * 3600.0
"""Maximum pause between attempts, in seconds. Each failed attempt delays or fails one
request, and doubles the pause."""


class GatewayLimit:
    """The size of the largest body that is worth requesting.

    It has no clock: the caller calls ``try_again`` every ``pause_s`` while there is a
    limit.

    Args:
        max_body_bytes: maximum size of a body to request, whatever has arrived.
    """

    __slots__ = (
        "_arrivals",
        "_largest",
        "_lost",
        "_may_try",
        "_small_arrivals",
        "_tried",
        "limit_bytes",
        "pause_s",
    )

    def __init__(self, max_body_bytes: int) -> None:
        self.limit_bytes: int | None = None
        """Size of the largest body to request; None if no limit is known."""
        self.pause_s = FIRST_PAUSE_S
        """Seconds until the next attempt."""
        self._lost: list[int | None] = []
        """Sizes of at most ``LOSSES`` lost bodies; after a limit is known, only the
        smallest size. None stands for an unknown length."""
        self._arrivals = 0
        self._small_arrivals = 0
        self._largest = [0] * (max_body_bytes.bit_length() + 1)
        """For each bit length of a size, the largest size of a body that arrived."""
        self._may_try = False
        self._tried = False

    def requests(self, length: int | None) -> bool:
        """Return whether to request a body.

        If the body exceeds the limit, this uses up the allowed attempt.

        Args:
            length: in bytes; None if unknown.
        """
        if self.limit_bytes is None:
            return True
        if self._holds(length):
            return True
        if self._may_try:
            self._may_try = False
            return True
        return False

    def arrived(self, length: int | None, size: int) -> None:
        """Record that a requested body arrived.

        Args:
            length: the announced length in bytes; None if unknown.
            size: the size received, in bytes.
        """
        bits = min(size.bit_length(), len(self._largest) - 1)
        if size > self._largest[bits]:
            self._largest[bits] = size
        if not self._lost:
            return
        if self.limit_bytes is not None:
            self._try_succeeded(length, size)
        elif size > FLOOR_BYTES:
            if any(lost is None or lost <= size for lost in self._lost):
                self._arrivals += 1
        elif length is None and None in self._lost:
            self._small_arrivals += 1
        if self._arrivals == ARRIVALS or self._small_arrivals == SMALL_ARRIVALS:
            self._forgive(size)

    def lost(self, length: int | None) -> None:
        """Record that a requested body never arrived.

        Args:
            length: the announced length in bytes; None if unknown.
        """
        if length is not None and length <= FLOOR_BYTES:
            return  # not a gateway's limit: the client disconnected
        if self._holds(length):
            # The gateway has changed: earlier arrivals say nothing about the new one.
            self._largest = [0] * len(self._largest)
        self._arrivals = self._small_arrivals = 0
        self._lost.append(length)
        if self.limit_bytes is None and len(self._lost) < LOSSES:
            return
        self._may_try = False
        known = [size for size in self._lost if size is not None]
        self._lost = [min(known, default=None)]
        self.limit_bytes = self._largest_below(self._lost[0])

    def try_again(self) -> None:
        """Allow one request above the limit, of any size."""
        if self._tried and not self._may_try:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        self._tried = self._may_try = True

    def _try_succeeded(self, length: int | None, size: int) -> None:
        """Raise the limit to the received size, or count the arrival against a loss."""
        assert self.limit_bytes is not None
        lost = self._lost[0]
        if length is not None and size <= self.limit_bytes:
            return
        self._may_try = True
        if lost is None or size >= lost:
            self._arrivals += 1
        if lost is None or size < lost:
            self.limit_bytes = max(self.limit_bytes, size)

    def _forgive(self, size: int) -> None:
        """Discard a loss, or the limit."""
        self._arrivals = self._small_arrivals = 0
        if self.limit_bytes is not None:
            self.limit_bytes, self._lost = None, []
            self._tried = self._may_try = False
            return
        for lost in self._lost:
            if lost is None or lost <= size:
                self._lost.remove(lost)
                return

    def _holds(self, length: int | None) -> bool:
        """Return whether the gateway was assumed to pass on a body of this length."""
        if self.limit_bytes is None or length is None:
            return False
        return length <= self.limit_bytes

    def _largest_below(self, lost: int | None) -> int:
        came = [size for size in self._largest if lost is None or size < lost]
        return max([FLOOR_BYTES, *came])
