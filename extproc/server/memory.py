"""Settings of the C allocator for a server that handles bodies of megabytes."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
"""``mallopt``'s parameters (glibc, malloc.h)."""

KEPT_BYTES: Final = 64 << 20
"""Free memory that stays with the process at least. Given back after each request, as
glibc does by default, it has to be mapped and cleared again for the next one: three
fifths of the CPU that a body of 220 kB cost."""

KEPT_BODIES: Final = 8
"""The same in bodies of the largest size: one takes up to five times its size while its
pieces are put together."""

_LARGEST_ON_HEAP_BYTES: Final = 32 << 20
"""The most that glibc takes: blocks of that size are mapped and unmapped each time."""

_GROWTH_BYTES: Final = 1 << 20
_MAX_INT: Final = 2**31 - 1


def keep_freed_memory(max_body_bytes: int = 0) -> bool:
    """Have ``malloc`` keep what is freed, up to a size.

    Args:
        max_body_bytes: of the requests, for that size.

    Returns:
        Whether it is glibc's, and took the settings; others are left alone.
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
