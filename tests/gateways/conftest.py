"""Envoy Gateway with the router and stand-ins for the pools."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from extproc.demo.stack.stack import Router, router, stand_in

from ..deploy.conftest import chart, kustomize, tools  # noqa: F401 - fixtures
from ..e2e.outside import Client
from ..patience import wait_until
from .envoy_gateway import (
    PORT,
    EnvoyGateway,
    Manifest,
    install,
    own_network,
    without_a_cluster,
)
from .go_program import UnavailableError

START_S = 240.0
"""Timeout in seconds: a start takes seconds on an idle machine, minutes on a busy one.
"""
GREETING = {"role": "user", "content": "Hello"}
WINDOWS = {"short": 8192, "long": 65536}


class System(NamedTuple):
    """A gateway, the router behind it, and a client that sends requests."""

    gateway: EnvoyGateway
    router: Router
    client: Client


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return install()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def start(
    binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., contextlib.AbstractContextManager[System]]:
    """Return a function that starts a gateway, a router and the pools.

    Args of the function:
        manifests: output of the overlay or of the command.
        config: configuration of the router.
        windows: each pool's name with its server's window in tokens.
        model: name of a model that the router and the pools serve.
        path: path of requests that the gateway routes.
    """

    @contextlib.contextmanager
    def start(
        manifests: list[Manifest],
        config: Mapping[str, Any],
        windows: Mapping[str, int] = WINDOWS,
        model: str = "m",
        path: str = "/v1/chat/completions",
    ) -> Iterator[System]:
        folder = tmp_path_factory.mktemp("gateway")
        with contextlib.ExitStack() as running:
            try:
                running.enter_context(own_network())
            except UnavailableError as missing:
                pytest.skip(str(missing))
            pools = [
                stand_in(name, window, 64, folder, speed=50)
                for name, window in windows.items()
            ]
            asked = router(dict(config), folder)
            services = {f"vllm-{pool.pool}": pool.port for pool in pools}
            services["token-budget-router"] = asked.port
            for child in (*(pool.child for pool in pools), asked.child):
                running.enter_context(child)
            for pool in pools:
                pool.wait_ready()
            asked.wait_ready()
            objects = without_a_cluster(manifests, services)
            gateway = EnvoyGateway(binary, folder / "gateway", objects)
            running.enter_context(gateway.child)
            gateway.child.wait_ready(_listens, START_S)
            client = Client(SimpleNamespace(port=PORT))  # type: ignore[arg-type]
            wait_until(
                lambda: (
                    client.post(path, {"model": model, "messages": [GREETING]}).status
                    == 200
                )
            )
            yield System(gateway, asked, client)

    return start


def _listens() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT)):
        return True
    return False
