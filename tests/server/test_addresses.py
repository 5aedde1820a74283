"""What the system says of a name."""

import asyncio

from yarl import URL

from extproc.server.addresses import resolve


def test_the_system_is_asked_for_addresses():
    async def scenario():
        assert await resolve(URL("http://127.0.0.9:80")) == ["127.0.0.9"]
        assert await resolve(URL("http://[::1]:80")) == ["::1"]
        assert await resolve(URL("http://localhost:80")) == ["127.0.0.1"]
        assert await resolve(URL("http://no-such-name.invalid:80")) == []

    asyncio.run(scenario())
