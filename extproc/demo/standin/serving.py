"""Serves one stand-in until it is stopped."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web


async def serve(application: web.Application, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    When a client disconnects, its handler is canceled, and so are the sequences and
    requests that the handler started.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, shutdown_timeout=1).start()
        print(f"listening on {runner.addresses[0]}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
