"""The nginx example, in a real nginx, in front of two stand-ins."""

import asyncio
import contextlib
import io
import json
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from extproc.config import Config
from extproc.exchange.machine import ExchangeSettings
from extproc.server.admin import AdminServer
from extproc.server.api import Api
from extproc.server.assembly import build_router, build_sampler
from extproc.server.explaining import Explainer
from extproc.server.metrics import Metrics
from extproc.server.service import ExtProcService

CONFIGURATION = Path(__file__).parents[2] / "envoy" / "gateways" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
MAX_BODY_BYTES = 1 << 20
WAIT_S = 20.0

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="no nginx: apt-get install nginx-light"
)


def chat(words: int = 5, **fields: object) -> bytes:
    content = "several " * words
    body = {"messages": [{"role": "user", "content": content}], **fields}
    return json.dumps(body).encode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serve_backend(name: str) -> AsyncIterator[str]:
    """A stand-in that says who it is and what it got, in two pieces."""
    released = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        got = {
            "backend": name,
            "method": request.method,
            "path": request.raw_path,
            "bytes": len(body),
            "whole": body.endswith(b"}"),
            "pool": request.headers.get("x-llm-pool"),
            "authorization": request.headers.get("authorization"),
        }
        await response.write(json.dumps(got).encode() + b"\n")
        if body.startswith(b'{"hold"'):
            await released.wait()
        await response.write(b"end\n")
        return response

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"{host}:{port}"
    finally:
        released.set()
        await runner.cleanup()


def make_admin() -> AdminServer:
    router = build_router(Config())
    metrics = Metrics(router.ratios.all)
    service = ExtProcService(
        router, ExchangeSettings(), build_sampler(Config().feedback), metrics
    )
    return AdminServer(
        "127.0.0.1:0",
        metrics.registry,
        lambda: True,
        dict,
        lambda: Explainer(router, MAX_BODY_BYTES),
        MAX_BODY_BYTES,
        Api(service, MAX_BODY_BYTES),
    )


class Gateway:
    def __init__(self, url: str, client: aiohttp.ClientSession, admin: AdminServer):
        self.url = url
        self.client = client
        self.admin = admin

    async def post(
        self, body: bytes, path: str = "/v1/chat/completions", **headers: str
    ) -> dict[str, object]:
        async with self.client.post(
            f"{self.url}{path}", data=io.BytesIO(body), headers=headers
        ) as response:
            assert response.status == 200, await response.text()
            first, last = (await response.read()).splitlines()
            assert last == b"end"
            got: dict[str, object] = json.loads(first)
            return got


async def start_nginx(
    folder: Path, addresses: dict[str, str], stack: contextlib.AsyncExitStack
) -> str:
    text = CONFIGURATION.read_text()
    port = free_port()
    for placeholder, address in addresses.items():
        assert placeholder in text
        text = text.replace(placeholder, address)
    # A busy test machine is slower than a router may be.
    for timeout in ("proxy_connect_timeout 200ms", "proxy_read_timeout 1s"):
        assert timeout in text
        text = text.replace(timeout, f"{timeout.split()[0]} 20s")
    # Its folders are the distribution's, which only root may write to.
    own = "".join(
        f"  {kind}_temp_path {folder / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {\n", f"http {{\n{own}", 1)
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = f"daemon off;\npid {folder / 'pid'};\n{text}"
    text = text.replace("worker_processes auto", "worker_processes 1")
    (folder / "nginx.conf").write_text(text)
    assert NGINX is not None
    nginx = await asyncio.create_subprocess_exec(
        NGINX,
        *("-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"),
        stderr=asyncio.subprocess.PIPE,
    )
    stack.push_async_callback(nginx.communicate)
    stack.callback(nginx.terminate)
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert nginx.returncode is None
            await asyncio.sleep(0)
            continue
        writer.close()
        await writer.wait_closed()
        return f"http://127.0.0.1:{port}"


def through_nginx(folder: Path, steps: Callable[[Gateway], Awaitable[None]]) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            admin = make_admin()
            addresses = {"extproc:9090": await admin.start()}
            stack.push_async_callback(admin.stop)
            for name in ("vllm-short", "vllm-long"):
                address = await stack.enter_async_context(serve_backend(name))
                addresses[f"{name}:8000"] = address
            url = await start_nginx(folder, addresses, stack)
            client = await stack.enter_async_context(aiohttp.ClientSession())
            await asyncio.wait_for(steps(Gateway(url, client, admin)), WAIT_S)

    asyncio.run(run())


def test_routes_by_budget_and_forwards_the_request_as_it_was(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        body = chat(max_tokens=50)
        got = await gateway.post(body, authorization="Bearer x")
        assert got == {
            "backend": "vllm-short",
            "method": "POST",
            "path": "/v1/chat/completions",
            "bytes": len(body),
            "whole": True,
            "pool": "short",
            "authorization": "Bearer x",
        }
        got = await gateway.post(chat(max_tokens=20_000))
        assert got["backend"] == "vllm-long"
        got = await gateway.post(chat(60_000))
        assert (got["backend"], got["whole"]) == ("vllm-long", True)
        got = await gateway.post(b'{"prompt": "x"}', "/v1/completions?a=b")
        assert (got["backend"], got["path"]) == ("vllm-short", "/v1/completions?a=b")

    through_nginx(tmp_path, steps)


def test_what_cannot_be_decided_goes_to_the_long_pool(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        for body in (b"not JSON}", b'{"a":1}' * 200_000, b" " * (3 << 20) + b"}"):
            got = await gateway.post(body)
            assert got["backend"] == "vllm-long"
            assert got["bytes"] == len(body)
        async with gateway.client.get(f"{gateway.url}/v1/models") as response:
            assert b"vllm-long" in await response.read()
        await gateway.admin.stop()
        got = await gateway.post(chat())
        assert (got["backend"], got["method"]) == ("vllm-long", "POST")

    through_nginx(tmp_path, steps)


def test_clients_cannot_choose_and_streams_are_not_held(tmp_path: Path) -> None:
    async def steps(gateway: Gateway) -> None:
        forged = {"x-llm-pool": "long", "x-accel-redirect": "@long"}
        got = await gateway.post(chat(), **forged)
        assert (got["backend"], got["pool"]) == ("vllm-short", "short")
        held = b'{"hold": 1, ' + chat()[1:]
        url = f"{gateway.url}/v1/chat/completions"
        async with gateway.client.post(url, data=held) as response:
            first = await response.content.readline()
            assert b"vllm-short" in first  # while the stand-in has not ended

    through_nginx(tmp_path, steps)
