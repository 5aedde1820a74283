"""A server that responds like vLLM, or fails."""

import asyncio
from typing import Any

from aiohttp import web

METRICS = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="a }} odd name"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 900.0
vllm:num_requests_running{{engine="0",model_name="m"}} 3.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
vllm:prompt_tokens_total{{engine="0",model_name="m"}} 1.0e+06
"""


class FakeVllm:
    """A fake vLLM server on its own port."""

    def __init__(self, max_model_len=8192, host="127.0.0.1", key=None, tls=None):
        self.host = host
        self.key = key
        self.tls = tls
        self.moved_to = None
        self.comment = ""
        self.asked = []
        self.talks = asyncio.Event()
        self.talks.set()
        """While this event is unset, the server accepts requests but does not respond.
        """
        self.unanswered = 0
        """Number of upcoming requests that will receive an error."""
        self.hosts = set()
        self.waiting = 0.0
        self.max_model_len = max_model_len
        self.metrics_status = 200
        self.health_status = 200
        self._runner: Any = None
        self.url = None

    async def is_asked(self, times, path="/metrics"):
        """Wait until the server has received this many additional requests."""
        times += self.asked.count(path)
        async with asyncio.timeout(10):
            while self.asked.count(path) < times:
                await asyncio.sleep(0.005)

    async def start(self, port=0):
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, port, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    async def stop(self):
        self.talks.set()
        await self._runner.cleanup()

    def _asked(self, request):
        self.hosts.add(request.host)
        self.asked.append(request.path)
        if self.unanswered and request.path == "/metrics":
            raise web.HTTPServiceUnavailable
        if self.moved_to:
            raise web.HTTPFound(self.moved_to + request.path)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized

    async def _metrics(self, request):
        self._asked(request)
        await self.talks.wait()
        text = METRICS.format(waiting=self.waiting, usage=0.25) + self.comment
        return web.Response(text=text, status=self.metrics_status)

    async def _health(self, request):
        self.asked.append(request.path)
        if self.unanswered:
            self.unanswered -= 1
            raise web.HTTPServiceUnavailable
        return web.Response(status=self.health_status)

    async def _models(self, request):
        self._asked(request)
        models = [
            {"id": "m", "max_model_len": self.max_model_len},
            {"id": "adapter", "max_model_len": None},
        ]
        return web.json_response({"data": models})
