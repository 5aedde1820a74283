import asyncio
import socket
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter

from extproc.address import Address
from extproc.server.admin.explain import Explainer
from extproc.server.admin.server import AdminServer
from extproc.server.observe.report import StatusReport

from ..in_force import make_in_force
from .reports import status_report

Ask = Callable[[str], Awaitable[tuple[int, str, str]]]


def served(
    use: Callable[[Ask], Awaitable[None]],
    *,
    ready: Callable[[], bool] = lambda: True,
    host: str = "127.0.0.1",
) -> None:
    """Run a test against a server on its own port."""

    async def run() -> None:
        registry = CollectorRegistry()
        Counter("asked", "Questions", registry=registry).inc()
        explainer = Explainer(make_in_force())
        admin = AdminServer(
            Address.parse(f"{host}:0"),
            registry,
            ready,
            status_report,
            explainer,
            1000,
        )
        address = await admin.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def ask(path: str) -> tuple[int, str, str]:
                    async with session.get(f"http://{address}{path}") as response:
                        kind = response.headers["content-type"]
                        return response.status, kind, await response.text()

                await use(ask)
        finally:
            await admin.stop()

    asyncio.run(run())


def test_metrics_are_prometheus_text() -> None:
    async def use(ask: Ask) -> None:
        status, kind, text = await ask("/metrics")
        assert status == 200
        assert kind.startswith("text/plain; version=")
        assert "asked_total 1.0" in text

    served(use)


def test_alive_is_told_whether_ready_or_not() -> None:
    for is_ready in (True, False):

        async def use(ask: Ask, is_ready: bool = is_ready) -> None:
            assert (await ask("/healthz"))[0] == 200
            assert (await ask("/readyz"))[0] == (200 if is_ready else 503)

        served(use, ready=lambda is_ready=is_ready: is_ready)  # type: ignore[misc]


def test_the_status_is_json() -> None:
    async def use(ask: Ask) -> None:
        status, kind, text = await ask("/status")
        assert status == 200
        assert msgspec.json.decode(text, type=StatusReport) == status_report()
        assert kind.startswith("application/json")

    served(use)


def test_anything_else_is_not_found() -> None:
    async def use(ask: Ask) -> None:
        assert (await ask("/metrics/x"))[0] == 404

    served(use)


def test_ipv6_addresses_are_listened_on() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")

    async def use(ask: Ask) -> None:
        assert (await ask("/healthz"))[0] == 200

    served(use, host="[::1]")


def test_a_port_in_use_is_an_error() -> None:
    async def run() -> None:
        explainer = Explainer(make_in_force())
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = Address("127.0.0.1", taken.getsockname()[1])
            admin = AdminServer(
                address, CollectorRegistry(), bool, status_report, explainer, 1000
            )
            with pytest.raises(OSError, match="in use"):
                await admin.start()
            await admin.stop()

    asyncio.run(run())
