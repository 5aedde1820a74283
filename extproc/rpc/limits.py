"""Limits on the resources of the native transport that one peer may use."""

from dataclasses import dataclass

from extproc.rpc.frames import (
    DEFAULT_WINDOW_BYTES,
    MAX_MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    MIN_MAX_FRAME_BYTES,
)

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on one connection; the defaults suit Envoy with prompts of megabytes.

    Attributes:
        max_concurrent_streams: maximum number of open streams; further streams are
            refused with REFUSED_STREAM, so the peer may retry. 1,024 is Envoy's default
            limit on the requests to a cluster.
        max_header_list_bytes: maximum size of a request's headers, as HTTP/2 counts it.
        max_message_bytes: maximum size of a gRPC message; a larger message ends its
            stream with RESOURCE_EXHAUSTED.  Must exceed the largest body that the proxy
            buffers.
        max_buffered_bytes: maximum total size of the connection's incomplete messages.
            :class:`Held` limits the total of all connections.
        header_block_s: seconds within which a header block, or any frame except DATA,
            must be complete; after that the connection ends.
        message_s: seconds without progress after which an incomplete message ends its
            stream.
        max_queued_bytes: maximum number of reply bytes of the connection that the
            peer's flow control holds back. If a reply exceeds it, the stream of the
            reply is reset.
        max_frame_bytes: maximum frame size, announced as SETTINGS_MAX_FRAME_SIZE. It is
            large, so that a body takes few frames; a DATA frame needs no buffer of its
            size.
        stream_window_bytes, connection_window_bytes: number of bytes that the peer may
            send before it receives more credit. Credit is returned as bytes arrive,
            since ``max_buffered_bytes`` already limits the memory. A window smaller
            than a message therefore adds a round trip but cannot block the message.
        max_lingering_streams: maximum number of streams that this side has ended and
            the peer has not. If there are more, the oldest is reset (NO_ERROR), so that
            a peer that never closes its side does not run out of streams.
        control_burst, control_per_s: allowed burst, and allowed number per second after
            it, of frames that cause work without carrying content (PING, SETTINGS,
            PRIORITY, WINDOW_UPDATE, GOAWAY, DATA without content, refused requests,
            frames on closed streams). The allowance grows by
            ``CONTROL_FRAMES_PER_WORK`` frames for each message and for each DATA frame
            of at least ``MIN_WORK_BYTES``, whether received or released by a
            WINDOW_UPDATE.
        reset_burst, resets_per_s: allowed burst, and allowed number per second after
            it, of streams that the peer resets before any answer ("rapid reset",
            CVE-2023-44487), or causes this side to reset by breaking a rule
            ("MadeYouReset", CVE-2025-8671); each answered stream adds one to the
            allowance. The burst is twice the maximum number of open streams, so that a
            client may cancel all of its requests; 33 per second is nghttp2's limit.
            Resets after an answer do not count, since Envoy ends most of its streams
            with a reset.
    """

    max_concurrent_streams: int = 1024
    max_header_list_bytes: int = 16 * 1024
    max_message_bytes: int = 32 * MIB
    max_buffered_bytes: int = 32 * MIB
    max_queued_bytes: int = 16 * MIB
    max_frame_bytes: int = MIB
    stream_window_bytes: int = 16 * MIB
    connection_window_bytes: int = 64 * MIB
    max_lingering_streams: int = 128
    header_block_s: float = 10.0
    message_s: float = 30.0
    control_burst: int = 1000
    control_per_s: float = 100.0
    reset_burst: int = 2048
    resets_per_s: float = 33.0

    def __post_init__(self) -> None:
        within = {
            "max_concurrent_streams": (1, MAX_WINDOW_BYTES),
            "max_header_list_bytes": (1024, MIB),
            "max_message_bytes": (1024, MAX_WINDOW_BYTES),
            "max_frame_bytes": (MIN_MAX_FRAME_BYTES, MAX_MAX_FRAME_BYTES),
            "stream_window_bytes": (1024, MAX_WINDOW_BYTES),
            "connection_window_bytes": (DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES),
            "max_lingering_streams": (1, MAX_WINDOW_BYTES),
        }
        for name, (low, high) in within.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low} to {high}")


@dataclass(slots=True)
class Held:
    """Byte count of the incomplete messages of all connections together."""

    limit_bytes: int = 512 * MIB
    """Limit in bytes. Above it, the stream of each message that grows is ended."""
    held_bytes: int = 0
    """Bytes held now."""


CONTROL_FRAMES_PER_WORK = 4
"""Number of control frames that one unit of work adds to the allowance. A DATA frame
may cause a WINDOW_UPDATE of the stream, one of the connection, and a PING."""

MIN_WORK_BYTES = 1024
"""Minimum content in bytes of a DATA frame that counts as work without completing a
message. Otherwise a peer could earn a flood of control frames with single bytes of
content."""

MAX_SETTINGS = 32
"""Maximum number of entries in a SETTINGS frame (nghttp2's limit); clients send at most
8."""


class Budget:
    """A token bucket that is refilled by time and by useful work.

    Args:
        burst: initial and maximum number of tokens.
        per_s: tokens added per second.
        per_work: tokens added for each unit of the counter passed to :meth:`spend`.
    """

    __slots__ = ("_burst", "_level", "_per_s", "_per_work", "_then", "_work")

    def __init__(self, burst: int, per_s: float, per_work: int) -> None:
        self._burst = self._level = float(burst)
        self._per_s = per_s
        self._per_work = per_work
        self._then: float | None = None
        self._work = 0

    def spend(self, now: float, work: int) -> bool:
        """Spend one token; return false if there is none.

        Args:
            now: seconds, from any monotonic clock.
            work: a counter that never decreases.
        """
        if self._then is not None:
            earned = (now - self._then) * self._per_s
            earned += (work - self._work) * self._per_work
            self._level = min(self._burst, self._level + max(0.0, earned))
        self._then, self._work = now, work
        if self._level < 1:
            return False
        self._level -= 1
        return True
