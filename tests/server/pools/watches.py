"""A watch over servers that respond like vLLM."""

import asyncio
import contextlib

from extproc.config import LoadConfig, PoolConfig
from extproc.server.pools.watch import LoadWatch

FAST = LoadConfig(interval_s=0.02, stale_after_s=5.0, waiting_requests=8.0)


@contextlib.asynccontextmanager
async def watch_over(
    *servers, config=FAST, max_model_len=8192, key_file=None, **options
):
    """Yield a watch that is not started, over servers that are running."""
    for server in servers:
        await server.start()
    urls = tuple(server.url for server in servers)
    pool = PoolConfig("short", max_model_len, endpoints=urls, api_key_file=key_file)
    watch = LoadWatch([pool, PoolConfig("long", 65536)], config, **options)
    try:
        yield watch
    finally:
        await watch.stop()
        for server in servers:
            await server.stop()


@contextlib.asynccontextmanager
async def watching(*servers, **options):
    async with watch_over(*servers, **options) as watch:
        await watch.start()
        yield watch


async def becomes(watch, load, timeout_s=10):
    async with asyncio.timeout(timeout_s):
        while watch.current().get("short") != load:
            await asyncio.sleep(0.005)


async def until(watch, **expected):
    async with asyncio.timeout(10):
        while True:
            (status,) = watch.statuses()
            if {key: getattr(status, key) for key in expected} == expected:
                return
            await asyncio.sleep(0.005)
