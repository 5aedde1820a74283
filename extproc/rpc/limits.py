"""What one peer may ask of the native transport."""

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
    """Bounds on one connection; the defaults suit an Envoy with prompts of megabytes.

    Attributes:
        max_concurrent_streams: further ones are refused (REFUSED_STREAM: the peer may
            retry).  1,024 is Envoy's own default for a cluster's requests.
        max_header_list_bytes: of a request's headers, as HTTP/2 counts them.
        max_message_bytes: of one gRPC message; a larger one ends its stream with
            RESOURCE_EXHAUSTED.  Must exceed the largest body that the proxy buffers.
        max_buffered_bytes: of all messages that are not complete yet.  A :class:`Held`
            bounds those of all connections together.
        header_block_s: how long a header block, or any frame but DATA, may take to be
            complete; then the connection ends.
        message_s: how long a message may make no progress; then its stream ends.
        max_queued_bytes: of replies that the peer's flow control holds back; beyond it
            the connection ends.
        max_frame_bytes: announced as SETTINGS_MAX_FRAME_SIZE.  Large, so that a body is
            few frames; a DATA frame needs no buffer of its size.
        stream_window_bytes, connection_window_bytes: what the peer may send ahead.
            Credit is returned as bytes arrive, since whatever must be held back is
            bounded by ``max_buffered_bytes``; a window below the size of a message
            therefore costs a round trip but cannot block.
        max_lingering_streams: ended by us and not by the peer; beyond it the oldest is
            reset (NO_ERROR), so that a peer that never closes its side loses nothing.
        control_burst, control_per_s: frames that ask for work and carry none (PING,
            SETTINGS, PRIORITY, WINDOW_UPDATE, GOAWAY, DATA without content, requests
            that are refused, frames on closed streams): how many at once, and how many
            a second after that.  Each message, and each DATA frame of
            ``MIN_WORK_BYTES``, received or released by a WINDOW_UPDATE, earns
            ``CONTROL_FRAMES_PER_WORK`` more.
        reset_burst, resets_per_s: the same for streams that the peer resets before they
            are answered at all ("rapid reset", CVE-2023-44487), or makes us reset by
            breaking a rule ("MadeYouReset", CVE-2025-8671); each stream that is
            answered earns one more.  The burst is twice the streams, so that a client
            may cancel all that it has; 33 is nghttp2's figure.  Resets after an answer
            are no sign of anything: Envoy ends most of its streams so.
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
    """What the incomplete messages of all connections hold together."""

    limit_bytes: int = 512 * MIB
    """Beyond it a message that grows ends its stream."""
    held_bytes: int = 0
    """Now."""


CONTROL_FRAMES_PER_WORK = 4
"""A DATA frame may bring a WINDOW_UPDATE of stream and connection, and a PING."""

MIN_WORK_BYTES = 1024
"""Less content in a DATA frame counts as work only if it completes a message: else a
peer would pay for floods with single bytes."""

MAX_SETTINGS = 32
"""Entries in a SETTINGS frame (nghttp2's limit); clients send at most 8."""


class Budget:
    """A token bucket that useful work refills as time does.

    Args:
        burst: tokens at the start, and at most.
        per_s: tokens a second.
        per_work: tokens for each unit of the counter given to :meth:`spend`.
    """

    __slots__ = ("_burst", "_level", "_per_s", "_per_work", "_then", "_work")

    def __init__(self, burst: int, per_s: float, per_work: int) -> None:
        self._burst = self._level = float(burst)
        self._per_s = per_s
        self._per_work = per_work
        self._then: float | None = None
        self._work = 0

    def spend(self, now: float, work: int) -> bool:
        """Take one token; false when there is none.

        Args:
            now: seconds, from any monotonic clock.
            work: a counter that only grows.
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
