"""With `server.workers`, a router has several processes, each an endpoint for Envoy."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.stack.envoy_config import find_config
from extproc.demo.stack.process import Child, free_ports
from extproc.demo.stack.stack import Router, Stack, envoy

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(
    stack: Stack,
    client_of: Any,
    admin_of: Any,
    patiently: Any,
    tmp_path_factory: Any,
) -> Iterator[tuple[Any, Any]]:
    """Start a router of two workers on Unix sockets, and an Envoy that lists both."""
    directory = tmp_path_factory.mktemp("workers")
    (admin_port,) = free_ports(1)
    sockets = directory / "grpc.sock"
    config = {
        "server": {
            "listen": f"unix:{sockets}",
            "admin": f"127.0.0.1:{admin_port}",
            "workers": 2,
        },
        "feedback": {"sample": "all"},
        "state": {"interval_s": 0.1},
    }
    path = directory / "extproc.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "extproc", "serve", "--config", str(path)]
    environment = {"PYTHONPATH": str(PROJECT), "TMPDIR": str(directory)}

    def list_both(document: dict[str, Any]) -> None:
        clusters = document["static_resources"]["clusters"]
        assignment = next(c for c in clusters if c["name"] == "extproc")
        # The address of a Unix socket has no host name to resolve.
        assignment["type"] = "STATIC"
        del assignment["dns_lookup_family"]
        assignment["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"pipe": {"path": f"{sockets}.{i}"}}}}
            for i in range(2)
        ]

    with Child("extproc", command, directory / "extproc.log", environment) as child:
        router = Router(child, 0, admin_port)
        router.wait_ready()
        new = envoy(
            find_config(), stack.backends, 0, directory, change=patiently(list_both)
        )
        with new.child:
            new.wait_ready()
            child.wait_ready(lambda: new.healthy_endpoints("extproc") == 2, 60)
            yield client_of(new), admin_of(router)


def decided(admin: Any) -> list[int]:
    return [each["decisions"] or 0 for each in admin.status()["workers"]]


def test_streams_are_spread_and_a_dead_worker_costs_no_answer(
    two: tuple[Any, Any], eventually: Any
) -> None:
    client, admin = two
    for _ in range(20):
        assert client.chat("Hello there").status == 200
    eventually(lambda: sum(decided(admin)) == 20)
    assert min(decided(admin)) > 0
    assert admin.metric("extproc_decisions_total") == 20

    killed = admin.status()["workers"][0]["pid"]
    os.kill(killed, signal.SIGKILL)
    for _ in range(20):
        assert client.chat("Hello there").status == 200
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 2)

    def is_another() -> bool:
        worker = admin.status()["workers"][0]
        return worker["ready"] and worker["pid"] != killed

    eventually(is_another)

    def decides_again() -> bool:
        assert client.chat("Hello there").status == 200
        return decided(admin)[0] > 0

    eventually(decides_again)
    assert admin.metric("extproc_decisions_total") > 20
