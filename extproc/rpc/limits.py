"""Limits on what one peer may use of the native transport."""

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
        max_concurrent_streams: streams above this are refused (REFUSED_STREAM: the peer
            may retry).  1,024 is Envoy's default for a cluster's requests.
        max_header_list_bytes: size of a request's headers, as HTTP/2 counts it.
        max_message_bytes: size of one gRPC message; a larger one ends its stream with
            RESOURCE_EXHAUSTED.  Must exceed the largest body that the proxy buffers.
        max_buffered_bytes: size of all incomplete messages of the connection.
            :class:`Held` limits those of all connections together.
        header_block_s: seconds within which a header block, or any frame except DATA,
            must be complete; after that the connection ends.
        message_s: seconds without progress after which an incomplete message ends its
            stream.
        max_queued_bytes: reply bytes held back by the peer's flow control; above this
            the stream is reset.
        max_frame_bytes: announced as SETTINGS_MAX_FRAME_SIZE.  Large, so that a body
            takes few frames; a DATA frame needs no buffer of its size.
        stream_window_bytes, connection_window_bytes: bytes that the peer may send
            ahead. Credit is returned as bytes arrive, since ``max_buffered_bytes``
            already limits the memory; a window smaller than a message therefore costs a
            round trip but cannot block.
        max_lingering_streams: streams that this side has ended and the peer has not;
            above this the oldest is reset (NO_ERROR), so that a peer that never closes
            its side does not run out of streams.
        control_burst, control_per_s: frames that cause work without carrying any (PING,
            SETTINGS, PRIORITY, WINDOW_UPDATE, GOAWAY, DATA without content, refused
            requests, frames on closed streams): the burst, and the rate per second
            after it.  Each message, and each DATA frame of at least ``MIN_WORK_BYTES``,
            received or released by a WINDOW_UPDATE, earns ``CONTROL_FRAMES_PER_WORK``
            more.
        reset_burst, resets_per_s: the same for streams that the peer resets before any
            answer ("rapid reset", CVE-2023-44487), or makes us reset by breaking a rule
            ("MadeYouReset", CVE-2025-8671); each answered stream earns one more.  The
            burst is twice the number of streams, so that a client may cancel all of its
            requests; 33 is nghttp2's figure.  Resets after an answer do not count:
            Envoy ends most of its streams with one.
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
    """Limit in bytes; above it a message that grows ends its stream."""
    held_bytes: int = 0
    """Bytes held now."""


CONTROL_FRAMES_PER_WORK = 4
"""Control frames that one unit of work pays for. A DATA frame may cause a WINDOW_UPDATE
of the stream, one of the connection, and a PING."""

MIN_WORK_BYTES = 1024
"""Smallest DATA content in bytes that counts as work without completing a message.
Otherwise a peer could pay for floods with single bytes."""

MAX_SETTINGS = 32
"""Maximum entries in a SETTINGS frame (nghttp2's limit); clients send at most 8."""


class Budget:
    """A token bucket that both time and useful work refill.

    Args:
        burst: initial and maximum number of tokens.
        per_s: tokens added per second.
        per_work: tokens added for each unit of the counter given to :meth:`spend`.
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
