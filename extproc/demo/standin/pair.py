"""A proxy for a prefill and a decode server, like vLLM's example proxies.

    python -m extproc.demo.standin.pair --prefill http://127.0.0.1:8100 \\
        --decode http://127.0.0.1:8200 --port 8000

Each request goes to the prefill server for one token, then, with the
``kv_transfer_params`` of its response, to the decode server, whose response the client
receives. vLLM's example (``toy_proxy_server.py`` of its NIXL tests, which labels every
response ``application/json``, including streams: ``--as-json``) and llm-d's sidecar do
the same. For Envoy and the router, the pair is one backend of a pool.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence

from aiohttp import ClientSession, ClientTimeout, web

from extproc.demo.standin.request import ServedApi
from extproc.demo.standin.serving import serve

_MAX_BODY_BYTES = 256 * 1024 * 1024
#: Fields with an output limit, in any API.
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: Fields that are invalid in a request for one token.
_ONLY_DECODE = ("stream_options", "min_tokens", "min_completion_tokens")
#: vLLM's parameters for the prefill server.
_KEEP_FOR_ANOTHER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_PASSED_ON = ("authorization", "x-llm-pool", "x-llm-budget", "x-request-id")


class Pair:
    """The proxy for both servers."""

    def __init__(self, prefill: str, decode: str, *, as_json: bool = False) -> None:
        self._prefill = prefill.rstrip("/")
        self._decode = decode.rstrip("/")
        self._as_json = as_json
        self._session: ClientSession

    def application(self) -> web.Application:
        """Return the application; it keeps a client session while it is served."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.cleanup_ctx.append(self._connect)
        app.router.add_get("/health", self._health)
        for endpoint in ServedApi:
            if endpoint is not ServedApi.EMBEDDINGS:
                app.router.add_post(endpoint, self._generate)
        return app

    async def _connect(self, _: web.Application) -> AsyncIterator[None]:
        async with ClientSession(timeout=ClientTimeout(total=None)) as session:
            self._session = session
            yield

    async def _health(self, _: web.Request) -> web.Response:
        for url in (self._prefill, self._decode):
            async with self._session.get(f"{url}/health") as response:
                if response.status != 200:
                    return web.Response(status=503)
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {
            name: request.headers[name]
            for name in _PASSED_ON
            if name in request.headers
        }
        url = self._prefill + request.path
        async with self._session.post(
            url, json=for_prefill(body, request.path), headers=headers
        ) as response:
            if response.status != 200:
                return web.Response(
                    status=response.status,
                    body=await response.read(),
                    content_type=response.content_type,
                )
            transfer = (await response.json()).get("kv_transfer_params")
        if transfer:
            body["kv_transfer_params"] = transfer
        url = self._decode + request.path
        async with self._session.post(url, json=body, headers=headers) as response:
            answer = web.StreamResponse(status=response.status)
            answer.headers["content-type"] = (
                "application/json"
                if self._as_json
                else response.headers.get("content-type", "application/json")
            )
            await answer.prepare(request)
            async for chunk in response.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
            return answer


def for_prefill(body: dict[str, object], path: str) -> dict[str, object]:
    """Return the request for the prefill server: the same prompt, one output token."""
    kept = {name: value for name, value in body.items() if name not in _ONLY_DECODE}
    limits = [name for name in _LIMITS if name in kept]
    if not limits:
        limits = ["max_output_tokens" if path == ServedApi.RESPONSES else "max_tokens"]
    one: dict[str, object] = dict.fromkeys(limits, 1)
    return {**kept, **one, "stream": False, "kv_transfer_params": _KEEP_FOR_ANOTHER}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one pair's proxy."""
    parser = argparse.ArgumentParser(
        prog="python -m extproc.demo.standin.pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument("--prefill", required=True, metavar="URL")
    parser.add_argument("--decode", required=True, metavar="URL")
    parser.add_argument(
        "--as-json", action="store_true", help="label every response application/json"
    )
    args = parser.parse_args(argv)
    pair = Pair(args.prefill, args.decode, as_json=args.as_json)
    asyncio.run(serve(pair.application(), args.host, args.port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
