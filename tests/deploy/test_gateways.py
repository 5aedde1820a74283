"""The overlays' gateway settings, applied to a real Envoy.

This Envoy has one listener for each overlay, made by ``translation``. The tests show
that the settings work together. They do not show that a controller reads them, because
that needs a cluster.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import yaml

from extproc.demo.stack.process import Child, answers_200, free_ports
from extproc.demo.stack.stack import Router, router

from ..patience import be_patient
from .translation import TRANSLATIONS, Config, Gateway, renamed

pytestmark = pytest.mark.e2e

GATEWAYS = (
    "envoy-gateway",
    "envoy-gateway+overflow",
    "gke",
    "inference-extension",
    "istio",
)
STRIPPING = tuple(name for name in GATEWAYS if name != "gke")
"""Gateways that remove a client's own x-llm-pool, which GKE cannot do."""

SHORT_TEXT = "How are you today? " * 20
OVERFLOWING_TEXT = "The quick brown fox jumps over the lazy dog. " * 480
"""A prompt that exceeds the short stand-in's window, but not the configured window."""
LONG_TEXT = "The quick brown fox jumps over the lazy dog. " * 2000
"""About 20,000 tokens (90 kB), which need the long pool and exceed a 32 KiB buffer."""


@dataclass
class Rig:
    """A running Envoy with a listener for each overlay, and its backends."""

    ports: dict[str, int]
    router: Router

    def post(self, gateway: str, text: str, **headers: str) -> tuple[int, str | None]:
        """Send a chat request; return the status and the name of the cluster that
        answered.
        """
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
        }
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports[gateway], timeout=60
        )
        try:
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body),
                {"content-type": "application/json"}
                | {name.replace("_", "-"): value for name, value in headers.items()},
            )
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("x-served-by")
        finally:
            connection.close()


Change = Callable[[Config], None]


@pytest.fixture(scope="module")
def start(
    kustomize, pools, envoy_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Change], Rig]]:
    """Start Envoys, each with a changed configuration, that all call the same router."""
    directory = tmp_path_factory.mktemp("gateways")
    asked = router({"feedback": {"sample": "all"}}, directory)
    at = {f"vllm-{pool.pool}": ("127.0.0.1", pool.port) for pool in pools}
    at["token-budget-router"] = ("127.0.0.1", asked.port)
    translated = [
        renamed(TRANSLATIONS[name.partition("+")[0]](kustomize(name), at), name)
        for name in GATEWAYS
    ]
    with contextlib.ExitStack() as started:
        started.enter_context(asked.child)
        asked.wait_ready()

        def begin(change: Change) -> Rig:
            admin_port, *ports = free_ports(1 + len(GATEWAYS))
            config = bootstrap(translated, ports, admin_port)
            change(config)
            folder = tmp_path_factory.mktemp("envoy")
            path = folder / "envoy.yaml"
            path.write_text(yaml.safe_dump(config))
            command = [
                *(envoy_program, "--config-path", str(path), "--use-dynamic-base-id"),
                *("--concurrency", "1", "--log-level", "warning"),
            ]
            envoy = started.enter_context(Child("envoy", command, folder / "envoy.log"))
            url = f"http://127.0.0.1:{admin_port}/ready"
            envoy.wait_ready(lambda: answers_200(url), 60)
            return Rig(dict(zip(GATEWAYS, ports, strict=True)), asked)

        yield begin


def bootstrap(gateways: list[Gateway], ports: list[int], admin_port: int) -> Config:
    """Start one Envoy for all gateways, each on its own port."""
    gateways = copy.deepcopy(gateways)
    listeners = [
        gateway.listener
        | {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
        for gateway, port in zip(gateways, ports, strict=True)
    ]
    return {
        "admin": {
            "address": {
                "socket_address": {"address": "127.0.0.1", "port_value": admin_port}
            }
        },
        "static_resources": {
            "listeners": listeners,
            "clusters": [one for gateway in gateways for one in gateway.clusters],
        },
    }


@pytest.fixture(scope="module")
def rig(start: Callable[[Change], Rig]) -> Rig:
    return start(be_patient)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_request_takes_the_pool_that_fits(rig: Rig, gateway: str):
    status, served_by = rig.post(gateway, SHORT_TEXT)
    assert (status, "short" in str(served_by)) == (200, True)
    status, served_by = rig.post(gateway, LONG_TEXT)
    assert (status, "long" in str(served_by)) == (200, True)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_the_decision_beats_a_client_s_own_header(rig: Rig, gateway: str):
    status, served_by = rig.post(gateway, LONG_TEXT, x_llm_pool="short")
    assert (status, "long" in str(served_by)) == (200, True)


def test_an_overflow_becomes_an_answer_where_it_is_asked_for(rig: Rig):
    status, _ = rig.post("envoy-gateway", OVERFLOWING_TEXT)
    assert status == 400
    status, _ = rig.post("envoy-gateway+overflow", OVERFLOWING_TEXT)
    assert status == 200


def test_without_an_answer_requests_take_the_long_pool(start: Callable[..., Rig]):
    """A client's own x-llm-pool header has no effect if the gateway can remove it."""
    rig = start(lambda as_shipped: None)
    rig.router.child.pause()
    try:
        with concurrent.futures.ThreadPoolExecutor(len(STRIPPING)) as threads:
            answers = list(
                threads.map(
                    lambda name: rig.post(name, SHORT_TEXT, x_llm_pool="short"),
                    STRIPPING,
                )
            )
    finally:
        rig.router.child.resume()
    for gateway, (status, served_by) in zip(STRIPPING, answers, strict=True):
        assert (status, "long" in str(served_by)) == (200, True), gateway
