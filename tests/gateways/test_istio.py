"""What is particular to Istio: its settings, its checks, moving endpoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..deploy.manifests import Manifest
from ..e2e.fleet import ALL_POOLS, FLEET, LONG, NAMES, POOLS, chat
from ..e2e.outside import Admin
from ..e2e.unsized import PATH
from ..patience import be_patient, wait_until
from .conftest import System
from .go_program import UnavailableError
from .istio import program, refusals
from .traffic import CONFIG, answered

pytestmark = [pytest.mark.gateways, pytest.mark.xdist_group("gateways")]

OVERLAYS = ("istio", "istio-gateway-api")


@pytest.fixture(autouse=True)
def needs_go() -> None:
    try:
        program()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def manifests(overlay: str, kustomize: Any) -> list[Manifest]:
    made: list[Manifest] = copy.deepcopy(kustomize(overlay))
    be_patient(made)
    return made


@pytest.fixture(scope="module")
def filtered(manifests: list[Manifest], start: Any) -> Iterator[System]:
    """Run a gateway with only the clusters of its routes."""
    setting = {"PILOT_FILTER_GATEWAY_CLUSTER_CONFIG": "true"}
    config = CONFIG | {"feedback": {"sample": "all"}}
    with start(manifests, config, settings=setting) as system:
        yield system


def test_a_gateway_with_only_the_clusters_of_its_routes_has_the_router_s(
    filtered: System,
) -> None:
    assert answered(filtered.client.chat("Hello")) == (200, "short")


def test_the_router_and_the_client_learn_of_a_retry(filtered: System) -> None:
    retries = Admin(filtered.router).metric
    before = retries("extproc_overflow_retries_total")
    text = "The quick brown fox jumps over the lazy dog. " * 900
    response = filtered.client.chat(text)

    assert answered(response) == (200, "long")
    assert response.attempts == 2
    assert "x-llm-overflow" not in response.headers
    wait_until(lambda: retries("extproc_overflow_retries_total") == before + 1)


def test_a_removed_router_is_not_asked_although_it_still_answers(
    manifests: list[Manifest], start: Any
) -> None:
    """Kubernetes removes a pod's endpoint before the pod ends."""
    with start(manifests, CONFIG) as system:
        members = f"cluster\\.{system.gateway.router_cluster}\\.membership_total"
        assert system.gateway.stat(members) == 1
        system.gateway.move({"token-budget-router": 0})
        wait_until(lambda: system.gateway.stat(members) == 0)

        assert answered(system.client.chat("Hello")) == (200, "long")


def test_a_gateway_in_another_namespace(chart: Any, start: Any) -> None:
    manifests = copy.deepcopy(
        chart("istio-gateway-api", "gateway.parentNamespace=gateways")
    )
    be_patient(manifests)
    with start(manifests, CONFIG) as system:
        client = system.client
        text = "The quick brown fox jumps over the lazy dog. " * 900
        assert answered(client.chat("Hello")) == (200, "short")
        assert answered(client.chat(text)) == (200, "long")
        assert client.post("/v1/load_lora_adapter", {"lora_name": "x"}).status == 403
        system.router.child.kill()
        own = {"x-llm-pool": "short"}
        assert answered(client.chat("Hello", own)) == (200, "long")


@pytest.fixture
def models(overlay: str, chart: Any, start: Any) -> Iterator[System]:
    """Run the chart with several models; one of them is the default."""
    config = FLEET | {"unknown_model": {"default": "qwen3-32b"}}
    values = [f"config:={json.dumps(config)}"]
    for pool in ALL_POOLS:
        values.append(f"backends.{pool}.service=vllm-{pool}")
        values.append(f"backends.{pool}.port=8000")
    manifests = copy.deepcopy(chart(overlay, *values))
    be_patient(manifests)
    windows = dict.fromkeys(ALL_POOLS, 65536) | {"llama-short": 2048}
    with start(manifests, config, windows, "qwen3-32b") as system:
        yield system


def test_the_chart_s_models(models: System) -> None:
    client = models.client
    for name, model in NAMES.items():
        pools = POOLS[model]
        assert answered(client.post(PATH, chat(name))) == (200, pools[0])
        long = chat(name, LONG[:150_000])
        assert answered(client.post(PATH, long)) == (200, pools[-1])
    overflowing = chat("legal-de", LONG[:15_000])
    assert answered(client.post(PATH, overflowing)) == (200, "llama-long")
    assert answered(client.post(PATH, chat("gpt-4"))) == (200, "qwen-short")
    models.router.child.kill()
    own = {"x-llm-model": "llama-3.1-8b", "x-llm-pool": "llama-short"}
    assert answered(client.post(PATH, chat("vlm"), own)) == (200, "qwen-long")


VALUES = (
    "clusterDomain=example.internal",
    "fullnameOverride=llm-router",
    "gateway.hosts[0]=llm.example.com",
    "gateway.hosts[1]=*.llm.example.com",
    "gateway.messageTimeout=1500ms",
    "gateway.name=shared",
    "gateway.namespace=gateways",
    "gateway.parentNamespace=gateways",
    "gateway.pathPrefix=/team/v1",
    "gateway.rewritePrefix=/v1",
    "gateway.selector.istio=shared",
    'config.pools:=[{"name": "1", "max_model_len": 8192},'
    ' {"name": "middle", "max_model_len": 32768},'
    ' {"name": "long", "max_model_len": 131072}]',
    *(
        f"backends.{pool}.{key}"
        for pool in ("1", "middle")
        for key in ("service=vllm-pool", "port=8001", "podLabels.app=vllm")
    ),
)
"""Values of the chart other than the defaults."""


@pytest.mark.parametrize("gateway", [*OVERLAYS, "inference-extension"])
def test_the_chart_with_other_values_is_accepted(
    gateway: str, chart: Any, tmp_path: Path
) -> None:
    manifests = chart(gateway, *VALUES)
    assert sum(item["kind"] == "EnvoyFilter" for item in manifests) >= 1
    assert refusals(manifests, tmp_path) == ""


Break = Callable[[Manifest], None]


def no_host(manifest: Manifest) -> None:
    manifest["spec"]["hosts"] = []


def unknown_field(manifest: Manifest) -> None:
    value = manifest["spec"]["configPatches"][0]["patch"]["value"]
    value["priority_group"] = {}


def unknown_type(manifest: Manifest) -> None:
    value = manifest["spec"]["configPatches"][0]["patch"]["value"]
    value["typed_config"]["@type"] = "type.googleapis.com/envoy.PriorityGroup"


@pytest.mark.parametrize(
    ("kind", "mistake", "complaint"),
    [
        ("VirtualService", no_host, "host"),
        ("EnvoyFilter", unknown_field, "priority_group"),
        ("EnvoyFilter", unknown_type, "envoy.PriorityGroup"),
    ],
)
def test_a_mistake_is_refused(
    kind: str, mistake: Break, complaint: str, kustomize: Any, tmp_path: Path
) -> None:
    right = next(m for m in kustomize("istio") if m["kind"] == kind)
    wrong = copy.deepcopy(right)
    mistake(wrong)

    assert refusals([right], tmp_path) == ""
    assert complaint in refusals([wrong], tmp_path)
