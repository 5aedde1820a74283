"""The router's HTTP API behind another gateway, in front of two stand-ins."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from extproc.address import Address
from extproc.demo.stack.process import free_ports
from extproc.exchange.settings import ExchangeSettings
from extproc.server.admin.explain import Explainer
from extproc.server.admin.server import AdminServer
from extproc.server.observe.metrics import Metrics
from extproc.server.services.decide import Api
from extproc.server.services.ext_proc import ExtProcService

from ..in_force import make_in_force
from .reports import status_report

CONFIGURATIONS = Path(__file__).parents[3] / "envoy" / "gateways"
MAX_BODY_BYTES = 1 << 20
WAIT_S = 60.0

Start = Callable[[Path, int, dict[str, str]], list[str]]
"""Write a gateway's files and return the command that starts the gateway.

The arguments are a folder, the port to listen on, and replacements for the addresses in
the files.
"""


def chat(words: int = 5, **fields: object) -> bytes:
    content = "several " * words
    body = {"messages": [{"role": "user", "content": content}], **fields}
    return json.dumps(body).encode()


@contextlib.asynccontextmanager
async def serve_backend(name: str) -> AsyncIterator[str]:
    """Run a stand-in that writes its name and the received request, and later an end."""
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
    metrics = Metrics()
    in_force = make_in_force(settings=ExchangeSettings(max_body_bytes=MAX_BODY_BYTES))
    service = ExtProcService(in_force, metrics)
    return AdminServer(
        Address.parse("127.0.0.1:0"),
        metrics.registry,
        lambda: True,
        status_report,
        Explainer(in_force),
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


async def forwards_as_it_was(gateway: Gateway) -> None:
    """A small request reaches the short pool unchanged."""
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


async def holds_no_stream(gateway: Gateway) -> None:
    """The client receives the first bytes of a response before the backend ends it."""
    held = b'{"hold": 1, ' + chat()[1:]
    url = f"{gateway.url}/v1/chat/completions"
    async with gateway.client.post(url, data=held) as response:
        first = await response.content.readline()
        assert b"vllm-short" in first


async def until_it_listens(process: asyncio.subprocess.Process, port: int) -> None:
    """Wait until the port accepts connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert process.returncode is None
            await asyncio.sleep(0)
            continue
        writer.close()
        await writer.wait_closed()
        return


def through_gateway(
    start: Start, folder: Path, steps: Callable[[Gateway], Awaitable[None]]
) -> None:
    """Run steps against a gateway between a router and two stand-ins."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            admin = make_admin()
            addresses = {"extproc:9090": await admin.start()}
            stack.push_async_callback(admin.stop)
            for name in ("vllm-short", "vllm-long"):
                address = await stack.enter_async_context(serve_backend(name))
                addresses[f"{name}:8000"] = address
            (port,) = free_ports(1)
            command = start(folder, port, addresses)
            process = await asyncio.create_subprocess_exec(
                *command, stderr=asyncio.subprocess.PIPE
            )
            stack.push_async_callback(process.communicate)
            stack.callback(process.terminate)
            await until_it_listens(process, port)
            client = await stack.enter_async_context(aiohttp.ClientSession())
            gateway = Gateway(f"http://127.0.0.1:{port}", client, admin)
            await asyncio.wait_for(steps(gateway), WAIT_S)

    asyncio.run(run())


def put_in_place(text: str, placeholders: dict[str, str]) -> str:
    """Replace each placeholder; the text must contain all placeholders."""
    for placeholder, value in placeholders.items():
        assert placeholder in text, placeholder
        text = text.replace(placeholder, value)
    return text
