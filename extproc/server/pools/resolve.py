"""Resolves a URL's host, such as a headless Service, to the servers behind it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from yarl import URL

Resolve = Callable[[URL], Awaitable[Sequence[str]]]
"""Function that returns the addresses of a URL's host. The result is empty if the
addresses are unknown at present."""


async def resolve(url: URL) -> Sequence[str]:
    """Resolve a URL's host with the system's resolver.

    Returns only IPv4 addresses if there are any, as Envoy does (``V4_PREFERRED``), so
    that ``localhost`` is one server instead of two.
    """
    host = url.host or ""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # a host name
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return choose(found)


def choose(found: Iterable[tuple[Any, ...]]) -> Sequence[str]:
    """Return the addresses to poll from ``getaddrinfo``'s result, unique and sorted.

    They are sorted because the system's resolver rotates their order.
    """
    by_family: dict[int, set[str]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, set()).add(str(address[0]))
    chosen = by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or set()
    return sorted(chosen)
