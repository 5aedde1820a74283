"""Settings of the C allocator for a server that handles multi-megabyte bodies."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
"""``mallopt``'s parameters (glibc, malloc.h)."""

KEPT_BYTES: Final = 64 << 20
"""Minimum free memory in bytes that the process keeps. By default glibc returns free
memory to the system after each request, so that the system has to map and zero it again
for the next request. This takes three fifths of the CPU time for a 220 kB body."""

KEPT_BODIES: Final = 8
"""Minimum free memory to keep, as a multiple of the largest body. Assembling a body
takes up to five times its size."""

_LARGEST_ON_HEAP_BYTES: Final = 32 << 20
"""Largest threshold in bytes that glibc accepts. Blocks above it are always mapped and
unmapped."""

_GROWTH_BYTES: Final = 1 << 20
_MAX_INT: Final = 2**31 - 1


def keep_freed_memory(max_body_bytes: int = 0) -> bool:
    """Configure ``malloc`` to keep freed memory, up to a limit.

    Args:
        max_body_bytes: largest request body, from which the limit is computed.

    Returns:
        Whether the allocator is glibc's and accepted the settings. Other allocators are
        not configured.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    kept_bytes = max(KEPT_BYTES, KEPT_BODIES * max_body_bytes)
    return all(
        mallopt(parameter, value)
        for parameter, value in (
            (_M_TRIM_THRESHOLD, min(kept_bytes, _MAX_INT)),
            (_M_TOP_PAD, _GROWTH_BYTES),
            (_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP_BYTES),
        )
    )
