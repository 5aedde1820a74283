"""The shared admin port combines the responses of all workers."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from extproc.config import ServerConfig
from extproc.server.workers.admin import WorkersAdmin
from extproc.server.workers.worker import Worker

COUNTED = """\
# HELP extproc_decisions_total Requests routed
# TYPE extproc_decisions_total counter
extproc_decisions_total{pool="short"} 5.0
"""


async def decisions(admin: WorkersAdmin, address: str) -> list[str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/metrics") as response,
    ):
        text = await response.text()
    return [line for line in text.splitlines() if line.startswith("extproc_decisions")]


def test_what_a_worker_said_before_it_ended_counts_once(tmp_path: Path) -> None:
    """A worker's response may arrive after its successor has started."""
    meanwhile: list[Callable[[], None]] = []

    async def metrics(request: web.Request) -> web.Response:
        for call in meanwhile:
            call()
        return web.Response(text=COUNTED)

    async def scenario() -> None:
        worker = Worker(tmp_path, 0)
        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(worker.admin_socket)).start()
        admin = WorkersAdmin(ServerConfig(admin="127.0.0.1:0"), [worker], lambda: False)
        address = await admin.start()
        try:
            counted = ['extproc_decisions_total{pool="short"} 5.0']
            assert await decisions(admin, address) == counted
            meanwhile.append(lambda: admin.restarted(0))
            assert await decisions(admin, address) == counted
        finally:
            await admin.stop()
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 20))
