"""The overlays under a real Envoy Gateway and under Istio's own translation."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extproc.demo.stack.process import Child, free_ports

from ..deploy.manifests import Manifest
from ..e2e.outside import Admin, Client
from ..e2e.two_chunks import two_chunk_server
from ..e2e.unsized import send_chunked, send_http2
from ..patience import PATIENCE_S, be_patient, wait_until
from .conftest import System, gateway_for, network_for
from .istio import Istio, refusals
from .traffic import CONFIG, KIB, answered, chat, pieces

pytestmark = [pytest.mark.gateways, pytest.mark.xdist_group("gateways")]

OVERLAYS = ("envoy-gateway+overflow", "istio", "istio-gateway-api")


def other_team(overlay: str) -> Manifest:
    """Return another team's host on the same gateway."""
    metadata = {"name": "other", "namespace": "llm"}
    if overlay == "istio":
        host = "vllm-long.llm.svc.cluster.local"
        destination = {"destination": {"host": host, "port": {"number": 8000}}}
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": metadata,
            "spec": {
                "hosts": ["other.example"],
                "gateways": ["istio-system/llm-gateway"],
                "http": [{"route": [destination]}],
            },
        }
    service = {"group": "", "kind": "Service", "name": "vllm-long", "port": 8000}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {
            "hostnames": ["other.example"],
            "parentRefs": [{"name": "llm-gateway"}],
            "rules": [{"backendRefs": [service]}],
        },
    }


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def system(overlay: str, start: Any, kustomize: Any) -> Iterator[System]:
    manifests = copy.deepcopy(kustomize(overlay))
    be_patient(manifests)
    with start([*manifests, other_team(overlay)], CONFIG) as running:
        yield running


@pytest.fixture
def as_shipped(
    overlay: str, system: System, start: Any, kustomize: Any
) -> Iterator[System]:
    """Run the overlay with its own timeouts, which only Istio's `system` lacks."""
    if isinstance(system.gateway, Istio):
        with start(kustomize(overlay), CONFIG) as running:
            yield running
    else:
        yield system


def test_every_object_is_accepted(
    overlay: str, system: System, kustomize: Any, tmp_path: Path
) -> None:
    assert system.gateway.complaints() == []
    if isinstance(system.gateway, Istio):
        assert refusals(kustomize(overlay), tmp_path) == ""


@pytest.mark.parametrize(("words", "pool"), [(3, "short"), (40_000, "long")])
def test_a_request_takes_the_pool_that_fits(
    system: System, words: int, pool: str
) -> None:
    body = chat(words)
    assert answered(system.client.post("/v1/chat/completions", body)) == (200, pool)
    assert answered(send_chunked(system.client, pieces(body))) == (200, pool)
    assert answered(send_http2(system.client, pieces(body))) == (200, pool)


@pytest.mark.parametrize("kib", [40, 80, 400, 900])
def test_http2_bodies_reach_the_router(system: System, kib: int) -> None:
    body = chat(3, kib * KIB)

    assert answered(send_http2(system.client, pieces(body))) == (200, "short")


@pytest.mark.parametrize("mib", [6, 20])
def test_bodies_that_are_not_read_reach_the_long_pool(system: System, mib: int) -> None:
    body = chat(3, mib * KIB * KIB)
    for send in (send_chunked, send_http2):
        assert answered(send(system.client, pieces(body))) == (200, "long")
    response = system.client.post("/v1/chat/completions", body)
    assert answered(response) == (200, "long")


def test_an_overflow_becomes_an_answer_and_other_mistakes_are_asked_once(
    system: System,
) -> None:
    gateway = system.gateway

    def attempts() -> int:
        return gateway.stat(f"cluster\\.{gateway.pool_clusters}\\.upstream_rq_total")

    before = attempts()
    # The text exceeds the short pool's actual window, but not the window that the
    # router assumes for this pool.
    text = "The quick brown fox jumps over the lazy dog. " * 900
    assert answered(system.client.chat(text)) == (200, "long")
    assert attempts() - before == 2
    mistake = system.client.post("/v1/chat/completions", b"{no JSON")
    assert mistake.status == 400

    assert attempts() - before == 3


def test_a_client_s_own_pool_does_not_count_with_the_router_frozen_or_gone(
    as_shipped: System,
) -> None:
    """A hung router delays some requests by a second each, and later requests not at
    all.
    """
    system, gateway = as_shipped, as_shipped.gateway
    own = {"x-llm-pool": "short"}
    healthy = f"cluster\\.{gateway.router_cluster}\\.membership_healthy"
    child = system.router.child
    child.pause()
    try:
        # Envoy Gateway's Envoy checks a router that it has not called for up to a minute.
        wait_until(
            lambda: _asked(system, own) and gateway.stat(healthy) == 0, 2 * PATIENCE_S
        )
    finally:
        child.resume()
    child.kill()
    try:
        for _ in range(20):
            assert _asked(system, own)
    finally:
        child.start()
        system.router.wait_ready()
    wait_until(lambda: answered(system.client.chat("Hello")) == (200, "short"))


def _asked(system: System, headers: dict[str, str]) -> bool:
    assert answered(system.client.chat("Hello", headers)) == (200, "long")
    return True


def test_a_stream_is_not_held_by_a_router_that_froze(
    overlay: str, kustomize: Any, tmp_path: Path
) -> None:
    """``tests/e2e/test_failures.py`` explains why only a keepalive ends the wait."""
    manifests = kustomize(overlay)
    file = Path(__file__).parents[1] / "e2e" / "freezing_router.py"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with network_for(manifests), two_chunk_server() as pool:
        (port,) = free_ports(1)
        command = [sys.executable, str(file), str(port)]
        services = {"vllm-short": pool, "vllm-long": pool, "token-budget-router": port}
        with (
            Child("freezing", command, tmp_path / "freezing.log", path),
            gateway_for(manifests, services, tmp_path) as gateway,
        ):
            checks = f"cluster\\.{gateway.router_cluster}\\.health_check\\.success"
            wait_until(lambda: gateway.stat(checks) > 0)
            client = Client(SimpleNamespace(port=gateway.port))  # type: ignore[arg-type]
            body = {"model": "m", "messages": [], "stream": True}
            response = client.post("/v1/chat/completions", body)
    assert response.body == b"data: a\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("body", [b"{}", b"x" * 2_000_000], ids=["small", "large"])
def test_another_team_s_host_never_reaches_the_router(
    system: System, body: bytes
) -> None:
    decisions = Admin(system.router).metric
    before = decisions("extproc_decisions_total"), decisions("extproc_not_routed_total")
    for _ in range(5):
        response = system.client.post(
            "/v1/chat/completions", body, {"host": "other.example"}
        )
        assert response.headers["x-standin"] == "long"
        assert "x-llm-pool" not in response.headers

    assert before == (
        decisions("extproc_decisions_total"),
        decisions("extproc_not_routed_total"),
    )


def test_clients_load_no_adapters(system: System) -> None:
    decisions = Admin(system.router).metric
    before = decisions("extproc_decisions_total")
    for path in (
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter/",
        "/v1//load_lora_adapter?x=1",
        "/v1/%6Coad_lora_adapter",
        "/v1/x/../load_lora_adapter",
        "/v1%2Fload_lora_adapter",
    ):
        response = system.client.post(path, {"lora_name": "x"})
        assert (response.status, "x-standin" in response.headers) != (200, True), path
        assert response.status in {307, 403, 404}, path
    assert decisions("extproc_decisions_total") == before


def test_a_prefix_before_the_api_s_paths(overlay: str, start: Any, chart: Any) -> None:
    values = ("gateway.pathPrefix=/team/v1", "gateway.rewritePrefix=/v1")
    path = "/team/v1/chat/completions"
    with start(chart(overlay, *values), CONFIG, path=path) as system:
        for words, pool in ((3, "short"), (40_000, "long")):
            assert answered(system.client.post(path, chat(words))) == (200, pool)
        loaded = system.client.post("/team/v1/load_lora_adapter", {"lora_name": "x"})
        assert loaded.status == 403
        # This path matches no route, unless the gateway has one for every such path.
        elsewhere = system.client.post("/v1/load_lora_adapter", {"lora_name": "x"})
        assert elsewhere.status in {403, 404}
        assert system.client.post("/v1/chat/completions", chat(3)).status == 404


def test_with_envoy_gateway_s_own_limits_at_most_three_are_lost(
    start: Any,
    kustomize: Any,
) -> None:
    """This is the case if the Gateway has its own policy, which excludes the overlay's."""
    manifests = [
        item
        for item in kustomize("envoy-gateway")
        if item["kind"] != "ClientTrafficPolicy"
    ]
    with start(manifests, CONFIG) as system:
        statuses = []
        for kib in (80, 120, 200, 400, 900):
            for send in (send_chunked, send_http2):
                response = send(system.client, pieces(chat(3, kib * KIB)))
                statuses.append(response.status)

        assert set(statuses) <= {200, 413}
        assert statuses.count(413) <= 3
        limit = Admin(system.router).metric("extproc_requested_body_limit_bytes")
        assert limit < 80 * KIB
