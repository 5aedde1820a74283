"""The admin port for all workers, which merges their reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import CONTENT_TYPE_LATEST

from extproc.address import Address
from extproc.config import ServerConfig
from extproc.server.observe.report import (
    NoWorkerReport,
    StatusReport,
    WorkerReport,
)
from extproc.server.workers.merge import MergedMetrics, merge_reports
from extproc.server.workers.worker import Worker

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_POLL_S = 0.05
_STATUS = msgspec.json.Decoder(StatusReport)
_OWN_HEADERS = frozenset(
    {"connection", "content-length", "date", "server", "transfer-encoding"}
)
"""Hop-by-hop headers, which a proxy does not forward."""


class WorkersAdmin:
    """Serves the same paths as ``AdminServer``, for several processes.

    /metrics and /status are merged, /readyz covers all workers, and requests to other
    paths are forwarded to a worker that is ready.

    Args:
        server: the addresses, and the largest body to read.
        workers: the workers' admin ports.
        draining: whether the workers are stopping.
    """

    def __init__(
        self,
        server: ServerConfig,
        workers: Sequence[Worker],
        draining: Callable[[], bool],
    ) -> None:
        self._server = server
        self._workers = workers
        self._draining = draining
        self._metrics = MergedMetrics(len(workers))
        self._restarts = [0] * len(workers)
        self._pids: list[int | None] = [None] * len(workers)
        app = web.Application(client_max_size=2 * server.max_body_bytes)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        app.router.add_get("/status", self._get_status)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Start listening; return the bound address, with the actual port instead of 0.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._runner.setup()
        address = Address.parse(self._server.admin)
        await web.TCPSite(self._runner, address.host, address.port).start()
        return str(address.with_port(self._runner.addresses[0][1]))

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    def started(self, worker: int, pid: int) -> None:
        """Record the process ID of a worker."""
        self._pids[worker] = pid

    def restarted(self, worker: int) -> None:
        """Count the restart of a worker."""
        self._restarts[worker] += 1
        self._metrics.restarted(worker)

    async def until_ready(self, worker: int) -> None:
        """Wait until a worker reports that it is ready."""
        while True:
            if await self._is_ready(self._workers[worker]):
                return
            await asyncio.sleep(_POLL_S)

    async def _is_ready(self, worker: Worker) -> bool:
        return await self._ask(worker, "/readyz") is not None

    async def _ask(self, worker: Worker, path: str) -> bytes | None:
        """Return the body of a worker's response if its status is 200, else None."""
        try:
            async with _asked(worker, "GET", path) as response:
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def _ask_all(self, path: str) -> list[bytes | None]:
        asked = (self._ask(worker, path) for worker in self._workers)
        return list(await asyncio.gather(*asked))

    async def _get_metrics(self, request: web.Request) -> web.Response:
        restarts = list(self._restarts)
        for worker, answer in enumerate(await self._ask_all("/metrics")):
            # Skip a worker that has restarted since it was asked, because its counts
            # were already added.
            if self._restarts[worker] == restarts[worker]:
                self._metrics.take(worker, None if answer is None else answer.decode())
        return web.Response(
            body=self._metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST}
        )

    async def _get_healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        if self._draining():
            return web.Response(text="draining\n", status=503)
        ready = await asyncio.gather(*map(self._is_ready, self._workers))
        if all(ready):
            return web.Response(text="ok\n")
        text = f"{sum(ready)} of {len(ready)} workers are ready\n"
        return web.Response(text=text, status=503)

    async def _get_status(self, request: web.Request) -> web.Response:
        answers = await self._ask_all("/status")
        reports = [
            None if answer is None else _STATUS.decode(answer) for answer in answers
        ]
        workers = [self._report_worker(*each) for each in enumerate(reports)]
        known = [report for report in reports if report is not None]
        if not known:
            return _answer(NoWorkerReport(workers), status=503)
        merged = merge_reports(known)
        all_ready = len(known) == len(reports) and merged.ready
        ready = all_ready and not self._draining()
        return _answer(replace(merged, ready=ready, workers=workers))

    def _report_worker(self, worker: int, report: StatusReport | None) -> WorkerReport:
        return WorkerReport(
            worker,
            str(Address.parse(self._server.listen).nth(worker)),
            self._pids[worker],
            self._restarts[worker],
            ready=report is not None and report.ready,
            uptime_s=None if report is None else report.uptime_s,
            decisions=None if report is None else report.decisions,
        )

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        kind = request.headers.get("content-type")
        headers = {} if kind is None else {"content-type": kind}
        for worker in self._workers:
            try:
                async with _asked(
                    worker, request.method, request.path_qs, data=body, headers=headers
                ) as response:
                    kept = {
                        name: value
                        for name, value in response.headers.items()
                        if name.lower() not in _OWN_HEADERS
                    }
                    return web.Response(
                        body=await response.read(), status=response.status, headers=kept
                    )
            except (aiohttp.ClientConnectorError, FileNotFoundError):
                continue  # not received, so another worker may receive it
            except (aiohttp.ClientError, OSError, TimeoutError):
                raise web.HTTPBadGateway(text="the worker did not answer\n") from None
        raise web.HTTPServiceUnavailable(text="no worker is available\n")


@asynccontextmanager
async def _asked(
    worker: Worker, method: str, path: str, **options: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    # Use one connection per request, since requests are few and the worker may have
    # been restarted.
    connector = aiohttp.UnixConnector(str(worker.admin_socket))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
        session.request(method, f"http://worker{path}", **options) as response,
    ):
        yield response


def _answer(report: Struct, status: int = 200) -> web.Response:
    body = msgspec.json.encode(report)
    return web.Response(body=body, status=status, content_type="application/json")
