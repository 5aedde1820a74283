"""Measure what faults cost behind each gateway, and print the rows of a table.

    pytest -m benchmark -s tests/gateways/test_figures.py

``envoy/kubernetes/README.md`` has the results.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import aiohttp
import pytest

from ..e2e.outside import Client, Response
from ..e2e.unsized import send_chunked, send_http2
from ..patience import PATIENCE_S
from .conftest import Picked, Start, StartPicked, System
from .traffic import CONFIG, chat, pieces, send_whole, send_whole_http2

pytestmark = [pytest.mark.benchmark, pytest.mark.xdist_group("gateways")]

OVERLAYS = (
    "envoy-gateway+overflow",
    "istio",
    "istio-gateway-api",
    "inference-extension",
)
RATE = 20
"""Requests a second."""
FAULT_S, RECOVERY_S, LOAD_S = 3.0, 9.0, 20.0
"""When the fault begins and ends, and the length of the load, in seconds."""
WARM_S = 65.0
"""Envoy Gateway's Envoy checks a router that it has not called once a minute."""
BODY = chat(3)


class Answered(NamedTuple):
    """One request of the load."""

    start_s: float
    status: int
    """0 if there was no response."""
    pool: str | None
    seconds: float


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def picked(
    overlay: str, start: Start, start_picked: StartPicked, kustomize: Any
) -> Iterator[Picked]:
    """Run the overlay; only inference pools have pickers."""
    if overlay == "inference-extension":
        with start_picked(kustomize(overlay), CONFIG) as running:
            yield running
    else:
        with start(kustomize(overlay), CONFIG) as system:
            yield Picked(system, {})


@pytest.fixture(scope="module")
def system(overlay: str, picked: Picked) -> System:
    if overlay.startswith("envoy-gateway"):
        deadline = time.monotonic() + WARM_S
        while time.monotonic() < deadline:
            picked.system.client.chat("Hello")
            time.sleep(1)
    return picked.system


Action = Callable[[], object]


async def load(port: int, begin: Action, end: Action) -> list[Answered]:
    """Send requests at a fixed rate, with a fault from FAULT_S to RECOVERY_S."""
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)

    async def ask(client: aiohttp.ClientSession) -> Answered:
        start, status, pool = time.monotonic(), 0, None
        headers = {"content-type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        try:
            async with client.post(url, data=BODY, headers=headers) as response:
                await response.read()
                status, pool = response.status, response.headers.get("x-standin")
        except (aiohttp.ClientError, TimeoutError):
            pass
        return Answered(start - began, status, pool, time.monotonic() - start)

    async def at(second: float, action: Action) -> None:
        await asyncio.sleep(began + second - time.monotonic())
        await asyncio.to_thread(action)

    async with aiohttp.ClientSession(timeout=timeout) as client:
        fault = asyncio.gather(at(FAULT_S, begin), at(RECOVERY_S, end))
        asked = []
        for number in range(int(LOAD_S * RATE)):
            await asyncio.sleep(began + number / RATE - time.monotonic())
            asked.append(asyncio.create_task(ask(client)))
        await fault
        return await asyncio.gather(*asked)


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|")


@pytest.mark.parametrize("fault", ["killed", "ended", "frozen"])
def test_a_router_that_is_away_for_six_seconds(
    overlay: str, system: System, fault: str
) -> None:
    child = system.router.child
    begins: dict[str, Action] = {
        "killed": child.kill,
        "ended": child.stop,
        "frozen": child.pause,
    }
    end = child.resume if fault == "frozen" else child.start
    answers = asyncio.run(load(system.gateway.port, begins[fault], end))

    times = [each.seconds for each in answers]
    failed = sum(each.status != 200 for each in answers)
    slow = sum(each > 0.9 for each in times)
    away = [each.start_s for each in answers if each.pool != "short"]
    elsewhere = f"{max(away) - min(away):.1f} s" if away else "never"
    row(
        *(overlay, f"router {fault}", f"{failed} of {len(answers)}"),
        *(f"{statistics.median(times) * 1000:.0f} ms", f"{max(times):.1f} s"),
        *(slow, elsewhere),
    )
    assert failed == 0


@pytest.mark.parametrize("mistake", ["overflow", "no JSON"])
def test_attempts(overlay: str, system: System, mistake: str) -> None:
    if overlay == "inference-extension":
        pytest.skip("has no retry")
    gateway = system.gateway
    pattern = f"cluster\\.{gateway.pool_clusters}\\.upstream_rq_total"
    before = gateway.stat(pattern)
    text = "The quick brown fox jumps over the lazy dog. " * 900
    if mistake == "overflow":
        response = system.client.chat(text)
    else:
        response = system.client.post("/v1/chat/completions", b"{no JSON")
    pool = response.headers.get("x-standin")
    row(overlay, mistake, response.status, pool, gateway.stat(pattern) - before)


SENDERS: dict[str, Callable[[Client, Sequence[bytes]], Response]] = {
    "HTTP/1.1": send_whole,
    "HTTP/2": send_whole_http2,
    "chunked": send_chunked,
    "HTTP/2 without length": send_http2,
}


@pytest.mark.parametrize("sender", SENDERS)
def test_body_sizes(overlay: str, system: System, sender: str) -> None:
    kib = (40, 80, 120, 400, 900, 3 << 10, 5 << 10, 12 << 10, 20 << 10)
    statuses = []
    for size in kib:
        response = SENDERS[sender](system.client, pieces(chat(3, size << 10)))
        statuses.append(f"{response.status} {response.headers.get('x-standin')}")
    row(overlay, sender, *statuses)


def test_a_picker_that_refuses_connections(overlay: str, picked: Picked) -> None:
    if not picked.pickers:
        pytest.skip("has no picker")
    port = picked.system.gateway.port

    def nothing() -> None:
        pass

    answers = asyncio.run(load(port, picked.pickers["short"].close, nothing))
    late = [each for each in answers if each.start_s > FAULT_S]
    failed = sum(each.status != 200 for each in late)
    row(overlay, "picker of short refuses", f"{failed} of {len(late)}")
