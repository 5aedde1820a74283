"""Name resolution through the operating system."""

import asyncio
import socket

from yarl import URL

from extproc.server.pools.resolve import choose, resolve


def test_the_system_is_asked_for_addresses():
    async def scenario():
        assert await resolve(URL("http://127.0.0.9:80")) == ["127.0.0.9"]
        assert await resolve(URL("http://[::1]:80")) == ["::1"]
        assert await resolve(URL("http://localhost:80")) == ["127.0.0.1"]
        assert await resolve(URL("http://no-such-name.invalid:80")) == []
        assert await resolve(URL(f"http://{'a' * 70}.invalid:80")) == []

    asyncio.run(scenario())


def found(*addresses):
    """Return results of getaddrinfo for these addresses, in the same order."""
    families = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
    return [
        (family, socket.SOCK_STREAM, 6, "", (address, 80))
        for family, address in zip(families, addresses, strict=True)
    ]


def test_each_server_counts_once_and_their_order_is_not_the_system_s():
    assert choose(found("10.0.0.2", "10.0.0.1", "10.0.0.2")) == ["10.0.0.1", "10.0.0.2"]


def test_a_name_with_addresses_of_both_kinds_stands_for_one_server_each():
    assert choose(found("::1", "127.0.0.1")) == ["127.0.0.1"]


def test_a_name_may_have_none_but_ipv6_addresses():
    assert choose(found("fd00::2", "fd00::1")) == ["fd00::1", "fd00::2"]
    assert choose([]) == []
