"""The servers behind a URL: a name may stand for several (a headless Service)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from yarl import URL

Resolve = Callable[[URL], Awaitable[Sequence[str]]]
"""Gives the addresses of a URL's host; none if they are not known now."""


async def resolve(url: URL) -> Sequence[str]:
    """Ask the system for a host's addresses.

    IPv4 if there is any, as Envoy does (``V4_PREFERRED``): ``localhost`` is
    one server, not two.
    """
    host = url.host or ""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # a name
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return choose(found)


def choose(found: Iterable[tuple[Any, ...]]) -> Sequence[str]:
    """The addresses to ask, of what ``getaddrinfo`` found: each once, in order.

    In the same order whatever the system's, which turns them from answer to answer.
    """
    by_family: dict[int, set[str]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, set()).add(str(address[0]))
    chosen = by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or set()
    return sorted(chosen)
