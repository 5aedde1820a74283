"""What size of body a gateway hands over, learned from the bodies that never came.

The router cannot see a gateway's buffer limit or HTTP/2 window. A body above it that is
requested whole is refused there (413), or waits until somebody gives up. After
``LOSSES`` such bodies, while none of their size comes, the router requests no larger
ones than have come. Now and then it tries again.
"""

from __future__ import annotations

LOSSES = 3
"""Bodies lost before a limit is taken to be there: one may be a client that went away,
three in a row hardly are."""
ARRIVALS = 10
"""Bodies of a lost one's size that must come for it to be forgiven: clients of HTTP/1.1
and of HTTP/2 meet other limits at one gateway, so that a few do not disprove it."""
SMALL_ARRIVALS = 100
"""The same for bodies whose length is not known before, and which are small: they say
little of a limit, but something of clients that go away."""
FLOOR_BYTES = 16 << 10
"""Bodies up to this are always requested. Half of the smallest limit in use: that of
Envoy Gateway's listeners, 32 KiB."""
FIRST_PAUSE_S = 600.0
"""From a limit's discovery to the next attempt to exceed it."""
LONGEST_PAUSE_S = 6 * 3600.0
"""Each failed attempt doubles the pause, up to this: an attempt costs a request."""


class GatewayLimit:
    """The largest body that is worth requesting.

    Without a clock: whoever has one calls ``try_again`` each ``pause_s`` while there is
    a limit.

    Args:
        max_body_bytes: the largest body that is requested anyway.
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
        """The largest body that is requested; None: no limit is known."""
        self.pause_s = FIRST_PAUSE_S
        """Seconds to the next attempt."""
        self._lost: list[int | None] = []
        """Sizes of the bodies lost and not forgiven, up to ``LOSSES``; once there is a
        limit, the smallest alone. None: not known before."""
        self._arrivals = 0
        self._small_arrivals = 0
        self._largest = [0] * (max_body_bytes.bit_length() + 1)
        """The largest body that came, by its bit length."""
        self._may_try = False
        self._tried = False

    def requests(self, length: int | None) -> bool:
        """Say whether to request a body. An attempt above the limit is used up by it.

        Args:
            length: in bytes; None: not known.
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
        """Take note of a body that was requested and came.

        Args:
            length: as known before, in bytes.
            size: of what came, in bytes.
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
        """Take note of a body that was requested and never came.

        Args:
            length: as known before, in bytes.
        """
        if length is not None and length <= FLOOR_BYTES:
            return  # no gateway's limit: its client went away
        if self._holds(length):
            # The gateway is another one now: what came before says nothing of it.
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
        """Request the next body above the limit, whatever its size."""
        if self._tried and not self._may_try:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        self._tried = self._may_try = True

    def _try_succeeded(self, length: int | None, size: int) -> None:
        """Raise the limit to what came, or count it against the loss above it."""
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
        """Forgive a loss, or lift the limit."""
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
        """Whether the gateway was taken to hand a body of a length over."""
        if self.limit_bytes is None or length is None:
            return False
        return length <= self.limit_bytes

    def _largest_below(self, lost: int | None) -> int:
        came = [size for size in self._largest if lost is None or size < lost]
        return max([FLOOR_BYTES, *came])
