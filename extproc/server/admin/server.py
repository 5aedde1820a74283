"""The admin port's HTTP server for metrics, probes, status, live page, explanations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from extproc.address import Address
from extproc.exchange.openai import DEFAULT_PATH
from extproc.server.admin.decide_http import HttpApi
from extproc.server.admin.explain import Explainer
from extproc.server.admin.page import load_page
from extproc.server.observe.report import StatusReport
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.decide import Api


class AdminServer:
    """Serves /, /metrics, /healthz, /readyz, /status and /explain.

    Args:
        address: address to listen on, which is a Unix socket if there are several
            workers.
        registry: metrics for /metrics.
        ready: whether the server accepts new streams.
        status: produces the report for /status.
        explainer: handles POST /explain.
        max_body_bytes: largest request body. Twice as many bytes are read, since the
            body may be in base64.
        api: decision API to serve as JSON over HTTP; None if it is disabled.
    """

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        status: Callable[[], StatusReport],
        explainer: Explainer,
        max_body_bytes: int,
        api: Api | None = None,
    ) -> None:
        self._address = address
        self._registry = registry
        self._ready = ready
        self._status = status
        self._explainer = explainer
        self._page = load_page()
        self._slices = TimeSlices(
            lambda call: asyncio.get_running_loop().call_soon(call)
        )
        app = web.Application(client_max_size=2 * max_body_bytes)
        app.router.add_get("/", self._get_page)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        app.router.add_get("/status", self._get_status)
        app.router.add_post("/explain", self._post_explain)
        if api is not None:
            HttpApi(api, self._slices).add_routes(app)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Start listening; return the bound address, with the actual port instead of 0.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._runner.setup()
        address = self._address
        if address.is_unix:
            await web.UnixSite(self._runner, address.path).start()
        else:
            await web.TCPSite(self._runner, address.host, address.port).start()
            address = address.with_port(self._runner.addresses[0][1])
        return str(address)

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _get_page(self, request: web.Request) -> web.Response:
        return web.Response(
            text=self._page.html, content_type="text/html", headers=self._page.headers
        )

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry),
            headers={"content-type": CONTENT_TYPE_LATEST},
        )

    async def _get_healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(text="draining\n", status=503)

    async def _get_status(self, request: web.Request) -> web.Response:
        return _json(self._status())

    async def _post_explain(self, request: web.Request) -> web.Response:
        """Explain the request in the body.

        ``?path=``, ``?hint=`` and ``?model=`` supply the request's path, hint header
        and model header (``model.header``).
        """
        path = request.query.get("path", DEFAULT_PATH)
        body = await request.read()
        reading = self._explainer.begin_parsing(body, path)
        await self._slices.finish(reading.step)
        hint = request.query.get("hint")
        explanation = self._explainer.explain(
            body,
            path,
            hint,
            reading=reading,
            model_header=request.query.get("model", ""),
        )
        return _json(explanation)


def _json(document: Struct) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(body=body, content_type="application/json")
