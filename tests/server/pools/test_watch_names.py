"""The watch over pools with host names, whose addresses change."""

import asyncio
import contextlib

from extproc.config import LoadConfig, PoolConfig
from extproc.routing.policy import PoolLoad
from extproc.server.pools.watch import LoadWatch

from .fake_vllm import FakeVllm
from .watches import FAST, becomes, until


@contextlib.asynccontextmanager
async def behind_one_name(*servers, config=FAST, interval_s=0.01):
    """Watch a pool with one host name, which resolves to the yielded list of addresses."""
    first, *others = servers
    await first.start()
    for server in others:
        await server.start(first.port)
    addresses = [server.host for server in servers]

    async def resolve(url):
        assert url.host == "vllm-short"
        looked_up.set()
        return addresses

    looked_up = asyncio.Event()

    url = f"http://vllm-short:{first.port}"
    watch = LoadWatch(
        [PoolConfig("short", 8192, endpoints=(url,))],
        config,
        resolve=resolve,
        resolve_interval_s=interval_s,
    )
    try:
        await watch.start()
        yield watch, addresses, looked_up
    finally:
        await watch.stop()
        for server in servers:
            await server.stop()


def test_each_address_of_a_name_is_an_endpoint():
    async def scenario():
        one, other = FakeVllm(), FakeVllm(host="127.0.0.2")
        one.waiting, other.waiting = 2.0, 16.0
        async with behind_one_name(one, other) as (watch, *_):
            await until(watch, endpoints=2, healthy=2, waiting=9.0)
            assert watch.current() == {"short": PoolLoad(under_pressure=True)}
            # The watch contacts both servers under the configured name.
            assert one.hosts == other.hosts == {f"vllm-short:{one.port}"}

    asyncio.run(scenario())


def test_addresses_come_and_go():
    async def scenario():
        one, other = FakeVllm(), FakeVllm(host="127.0.0.2")
        one.waiting, other.waiting = 2.0, 16.0
        async with behind_one_name(one, other) as (watch, addresses, looked_up):
            addresses.remove("127.0.0.2")
            await until(watch, endpoints=1, waiting=2.0)
            addresses.append("127.0.0.2")
            await until(watch, endpoints=2, waiting=9.0)
            addresses.clear()  # the name server is down: no change
            for _ in range(2):
                looked_up.clear()
                await looked_up.wait()
            await until(watch, endpoints=2, waiting=9.0)

    asyncio.run(scenario())


def watching_tasks():
    return sum("LoadWatch._watch" in repr(task) for task in asyncio.all_tasks())


def test_an_address_counts_as_soon_as_it_is_known():
    async def scenario():
        one, other = FakeVllm(), FakeVllm(host="127.0.0.2")
        one.waiting, other.waiting = 2.0, 16.0
        slow = LoadConfig(interval_s=30.0)
        async with behind_one_name(one, other, config=slow) as (watch, addresses, _):
            addresses.remove("127.0.0.2")
            await until(watch, endpoints=1, waiting=2.0)
            await asyncio.sleep(0)
            assert watching_tasks() == 1
            addresses.append("127.0.0.2")
            await until(watch, endpoints=2, waiting=9.0)
            assert watching_tasks() == 2

    asyncio.run(scenario())


def test_a_fault_of_a_name_lookup_is_as_if_nothing_were_known(caplog):
    async def scenario():
        server = FakeVllm()
        await server.start()
        looked_up = 0

        async def resolve(url):
            nonlocal looked_up
            looked_up += 1
            if looked_up <= 2:
                raise ZeroDivisionError
            return [server.host]

        url = f"http://no-such-name.invalid:{server.port}"
        pool = PoolConfig("short", 8192, endpoints=(url,))
        watch = LoadWatch([pool], FAST, resolve=resolve, resolve_interval_s=0.01)
        try:
            await watch.start()
            await until(watch, endpoints=1, healthy=1, waiting=0.0)
        finally:
            await watch.stop()
            await server.stop()

    asyncio.run(scenario())
    assert caplog.text.count("name_lookup_failed") == 2


def test_a_name_that_is_not_known_yet_is_looked_up_again():
    async def scenario():
        server, addresses = FakeVllm(), []
        await server.start()

        async def resolve(url):
            return addresses

        url = f"http://no-such-name.invalid:{server.port}"
        pool = PoolConfig("short", 8192, endpoints=(url,))
        watch = LoadWatch([pool], FAST, resolve=resolve, resolve_interval_s=0.01)
        try:
            await watch.start()
            await becomes(watch, PoolLoad(available=False))
            addresses.append(server.host)
            await becomes(watch, PoolLoad())
            await until(watch, endpoints=1, healthy=1)
        finally:
            await watch.stop()
            await server.stop()

    asyncio.run(scenario())
