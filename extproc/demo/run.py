"""Runs the demo: start the stack, send the requests, evaluate the results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from extproc.config import Config, PoolConfig, as_document
from extproc.demo.client import send_all, time_alternately
from extproc.demo.report import ProgressBar
from extproc.demo.results import (
    Latency,
    Measured,
    OverflowCheck,
    Results,
    added_latency,
    join,
    judge,
)
from extproc.demo.stack.access_log import wait_for_records
from extproc.demo.stack.stack import Backend, Stack, running, stand_in
from extproc.demo.stack.vllm_backend import (
    LONG_WINDOW,
    MODEL_NAME,
    SHORT_WINDOW,
    find_vllm,
    make_model,
    vllm,
)
from extproc.demo.workload import DemoRequest, Target, make_requests
from extproc.exchange.feedback import MODEL_SAMPLES

_CONCURRENCY = 8
_TIMED_ROUNDS = 200
# The router observes every response until a category is known, and latency is measured
# after that. The demo sends one request more than the router needs. These requests also
# warm up backends and connections.
_WARM_UP_REQUESTS = MODEL_SAMPLES + 1
# Ten times the speed of an A100, so that queues have realistic lengths but the demo
# takes less time.
_SPEED = 10.0


class RouterStatus(msgspec.Struct, frozen=True):
    """The part of the router's ``/status`` that the demo shows."""

    bytes_per_token: dict[str, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one demo run."""

    envoy_config: Path
    directory: Path
    """Directory for logs and generated configuration."""
    count: int = 400
    seed: int = 1
    requests: Sequence[DemoRequest] | None = None
    """The user's requests; None generates ``count`` requests from ``seed``."""
    vllm_python: str | None = None
    """Python interpreter that has vLLM, to run real servers; None runs stand-ins."""
    measure_latency: bool = True


@dataclass(frozen=True, slots=True)
class Demo:
    """A running stack, with the requests to send."""

    settings: Settings
    config: Config
    stack: Stack

    def send(self) -> Results:
        """Send all requests and return the results."""
        requests = self._requests()
        bar = ProgressBar("sending", len(requests))
        started = time.monotonic()
        replies = asyncio.run(
            send_all(self.stack.envoy.url, requests, _CONCURRENCY, bar.advance)
        )
        duration_s = time.monotonic() - started
        records = wait_for_records(
            self.stack.envoy.access_log, [reply.request_id for reply in replies]
        )
        measured = Measured(
            learned_bytes_per_token=self.status().bytes_per_token,
            latency=self._latency() if self.settings.measure_latency else None,
            overflow=self._overflow(),
        )
        sent = join(self.config, replies, records)
        return judge(self.config, sent, duration_s, measured)

    def status(self) -> RouterStatus:
        """Fetch the router's own status."""
        url = f"{self.stack.router.admin_url}/status"
        with urllib.request.urlopen(url, timeout=30) as response:
            return msgspec.json.decode(response.read(), type=RouterStatus)

    def _requests(self) -> list[DemoRequest]:
        if self.settings.requests is not None:
            return list(self.settings.requests)
        real = self.settings.vllm_python is not None
        target = Target(
            model=MODEL_NAME,
            short_window=self.config.pools[0].max_model_len,
            # A model with random weights rarely ends its output, and does not read
            # images.
            longest_answer=16 if real else None,
            images=not real,
        )
        return list(make_requests(self.settings.count, self.settings.seed, target))

    def _overflow(self) -> OverflowCheck:
        """Bypass the router and send the short pool a prompt too long for it."""
        prompt = "over and over " * (self.config.pools[0].max_model_len // 2)
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1}
        pool = self.config.pools[0].name
        request = DemoRequest(
            "/v1/completions",
            json.dumps(body).encode(),
            "",
            headers={"x-llm-pool": pool},
        )
        envoy = self.stack.envoy
        (reply,) = asyncio.run(send_all(envoy.bypass_url, [request], 1, lambda: None))
        records = wait_for_records(envoy.access_log, [reply.request_id])
        record = records.get(reply.request_id)
        return OverflowCheck(
            prompt_tokens=reply.prompt_tokens,
            status=reply.status,
            attempts=record.attempts if record else 0,
            answered_by=record.cluster if record else "nobody",
        )

    def _latency(self) -> Latency:
        """Time a small request with and without the router, to the same pool.

        The router already knows the request's category, as it does after some minutes
        of traffic.
        """
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": "What is the time in Lisbon?"}],
            "max_tokens": 1,
        }
        request = DemoRequest("/v1/chat/completions", json.dumps(body).encode(), "")
        # On the bypass listener, the client's own pool header chooses the route.
        pool = self.config.pools[0].name
        by_hand = replace(request, headers={"x-llm-pool": pool})
        urls = (self.stack.envoy.url, self.stack.envoy.bypass_url)
        requests = (request, by_hand)
        for url, warm_up in zip(urls, requests, strict=True):
            repeated = [warm_up] * _WARM_UP_REQUESTS
            asyncio.run(send_all(url, repeated, _CONCURRENCY, lambda: None))
        with_s, without_s = asyncio.run(time_alternately(urls, requests, _TIMED_ROUNDS))
        return added_latency(with_s, without_s)


@contextlib.contextmanager
def demo(settings: Settings) -> Iterator[Demo]:
    """Start the whole stack; stop it at the end.

    Raises:
        ChildError, EnvoyConfigError, VllmError: a component could not be started.
    """
    backends = _backends(settings)
    config = Config(
        pools=tuple(PoolConfig(each.pool, each.max_model_len) for each in backends)
    )
    bar = ProgressBar("starting", len(backends) + 2)
    with running(
        settings.directory,
        backends,
        {"pools": as_document(config.pools)},
        settings.envoy_config,
        ready=bar.advance,
    ) as stack:
        yield Demo(settings, config, stack)


def _backends(settings: Settings) -> list[Backend]:
    directory = settings.directory
    if settings.vllm_python is None:
        return [
            stand_in("short", 8192, 64, directory, speed=_SPEED),
            stand_in("long", 65536, 16, directory, speed=_SPEED),
        ]
    python = settings.vllm_python
    find_vllm(python)
    model = make_model(directory, python)
    return [
        vllm("short", SHORT_WINDOW, 16, model, directory, python=python),
        vllm("long", LONG_WINDOW, 4, model, directory, python=python),
    ]
