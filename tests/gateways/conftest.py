"""Envoy Gateway or Istio, with the router and stand-ins for the pools."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from extproc.demo.stack.process import free_ports
from extproc.demo.stack.stack import Backend, Router, router, stand_in

from ..deploy.conftest import chart, kustomize, tools  # noqa: F401 - fixtures
from ..deploy.manifests import Manifest
from ..e2e.outside import Client, Response
from ..patience import wait_until
from .envoy_gateway import EnvoyGateway, own_network
from .go_program import UnavailableError
from .istio import Istio
from .picker import Picker

GREETING = {"role": "user", "content": "Hello"}
WINDOWS = {"short": 8192, "long": 65536}


class System(NamedTuple):
    """A gateway, the router behind it, and a client that sends requests."""

    gateway: EnvoyGateway | Istio
    router: Router
    client: Client


class Picked(NamedTuple):
    """A system with inference pools, and the pools' pickers by name."""

    system: System
    pickers: dict[str, Picker]


Start = Callable[..., contextlib.AbstractContextManager[System]]
StartPicked = Callable[..., contextlib.AbstractContextManager[Picked]]


@contextlib.contextmanager
def servers(
    config: Mapping[str, Any], windows: Mapping[str, int], folder: Path
) -> Iterator[tuple[Router, list[Backend]]]:
    """Run the router and a stand-in for each pool."""
    pools = [
        stand_in(name, window, 64, folder, speed=50) for name, window in windows.items()
    ]
    asked = router(dict(config), folder)
    with contextlib.ExitStack() as running:
        for child in (*(pool.child for pool in pools), asked.child):
            running.enter_context(child)
        for pool in pools:
            pool.wait_ready()
        asked.wait_ready()
        yield asked, pools


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return a function that starts a gateway, a router and the pools.

    The gateway is Istio if the manifests have an EnvoyFilter, else Envoy Gateway.

    Args of the function:
        manifests: output of the overlay, the chart or the command.
        config: configuration of the router.
        windows: each pool's name with its server's window in tokens.
        model: name of a model that the router and the pools serve.
        path: path of requests that the gateway routes.
        more_services: for Istio, the local ports of more Services.
        settings: for Istio, more settings of istiod.
        before: called with the pools' local ports before the gateway starts.
        ready: whether a response shows that the system is ready. By default the router
            must have decided.
    """

    @contextlib.contextmanager
    def start(
        manifests: list[Manifest],
        config: Mapping[str, Any],
        windows: Mapping[str, int] = WINDOWS,
        model: str = "m",
        path: str = "/v1/chat/completions",
        more_services: Mapping[str, int] = MappingProxyType({}),
        settings: Mapping[str, str] = MappingProxyType({}),
        before: Callable[[dict[str, int]], None] = lambda pools: None,
        ready: Callable[[Response], bool] = lambda got: "x-llm-pool" in got.headers,
    ) -> Iterator[System]:
        folder = tmp_path_factory.mktemp("gateway")
        with contextlib.ExitStack() as running:
            running.enter_context(network_for(manifests))
            asked, pools = running.enter_context(servers(config, windows, folder))
            services = {f"vllm-{pool.pool}": pool.port for pool in pools}
            services["token-budget-router"] = asked.port
            services |= more_services
            before({pool.pool: pool.port for pool in pools})
            gateway = gateway_for(manifests, services, folder, settings)
            running.enter_context(gateway)
            client = Client(SimpleNamespace(port=gateway.port))  # type: ignore[arg-type]
            greeting = {"model": model, "messages": [GREETING]}
            wait_until(lambda: ready(client.post(path, greeting)))
            yield System(gateway, asked, client)

    return start


@pytest.fixture(scope="module")
def start_picked(start: Start) -> StartPicked:
    """Return a function that also starts a picker for each pool.

    Args of the function:
        manifests: output of the overlay or of the chart.
        config: configuration of the router.
        options: as of ``start``.
    """

    @contextlib.contextmanager
    def start_picked(
        manifests: list[Manifest], config: Mapping[str, Any], **options: Any
    ) -> Iterator[Picked]:
        ports = dict(zip(WINDOWS, free_ports(len(WINDOWS)), strict=True))
        pickers: dict[str, Picker] = {}
        with contextlib.ExitStack() as running:

            def before(pools: dict[str, int]) -> None:
                for name, port in ports.items():
                    pickers[name] = Picker(name, pools[name], port)
                    running.callback(pickers[name].close)

            options["more_services"] = {
                f"vllm-{name}-epp": port for name, port in ports.items()
            }
            started = start(manifests, config, before=before, **options)
            yield Picked(running.enter_context(started), pickers)

    return start_picked


@contextlib.contextmanager
def network_for(manifests: list[Manifest]) -> Iterator[None]:
    """Enter the network in which the manifests' gateway runs, or skip the test."""
    if _for_istio(manifests):
        yield
        return
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(own_network())
        except UnavailableError as missing:
            pytest.skip(str(missing))
        yield


def gateway_for(
    manifests: list[Manifest],
    services: Mapping[str, int],
    folder: Path,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> EnvoyGateway | Istio:
    """Return the manifests' gateway, not yet started, or skip the test."""
    try:
        if _for_istio(manifests):
            return Istio(folder, manifests, services, settings)
        return EnvoyGateway(folder / "gateway", manifests, services)
    except UnavailableError as missing:
        pytest.skip(str(missing))


def _for_istio(manifests: list[Manifest]) -> bool:
    return any(item["kind"] == "EnvoyFilter" for item in manifests)
