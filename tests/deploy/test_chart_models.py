"""The chart's routes and filters for a configuration with several models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from extproc.config import load_config

from .conftest import helm_flags
from .manifests import Manifest, http_route, only, virtual_service

MESHES_AND_ENVOY_GATEWAY = (
    "envoy-gateway",
    "istio",
    "istio-gateway-api",
    "inference-extension",
)

MODELS = (
    'config.models:={"llama": {"adapters": ["support-*"], "pools":'
    ' [{"name": "llama-short", "max_model_len": 8192},'
    ' {"name": "llama-long", "max_model_len": 65536}]},'
    ' "vlm": {"pools": [{"name": "vlm", "max_model_len": 32768}]}}',
    *(
        f"backends.{pool}.{key}={value}"
        for pool in ("llama-short", "llama-long", "vlm")
        for key, value in (
            ("service", f"vllm-{pool}"),
            ("port", 8000),
            ("podLabels.llm-pool", pool),
        )
    ),
)


def routes_of(manifests: list[Manifest]) -> list[tuple[dict[str, str], str]]:
    """Return, for each rule of an HTTPRoute, the headers that it matches and its
    backends.
    """
    return [
        (
            {h["name"]: h["value"] for h in rule["matches"][0].get("headers", ())},
            rule["backendRefs"][0]["name"],
        )
        for rule in http_route(manifests)["rules"]
    ]


BY_POOL = [
    ({"x-llm-pool": "llama-short"}, "vllm-llama-short"),
    ({"x-llm-pool": "llama-long"}, "vllm-llama-long"),
    ({"x-llm-pool": "vlm"}, "vllm-vlm"),
]


BY_MODEL = [
    ({"x-llm-model": "llama"}, "vllm-llama-long"),
    ({"x-llm-model": "vlm"}, "vllm-vlm"),
]


DEFAULT = "config.unknown_model.default=llama"


LAST = [({}, "vllm-llama-long")]


def test_each_model_has_routes_of_its_own(chart) -> None:
    """Requests for unknown models go to the largest pool of the default model."""
    routes = routes_of(chart("envoy-gateway", *MODELS, DEFAULT))
    assert routes == BY_POOL + BY_MODEL + LAST


@pytest.mark.parametrize("gateway", MESHES_AND_ENVOY_GATEWAY)
def test_models_need_a_route_for_requests_whose_model_is_not_known_yet(
    helm, envoy_folder: Path, gateway: str
) -> None:
    folder = envoy_folder / "helm/token-budget-router"
    command = ("template", "x", folder, *helm_flags(MODELS))
    refused = helm(*command, "--set", f"gateway.type={gateway}")
    assert "config.unknown_model.default" in refused.stderr
    assert "extproc routes" in refused.stderr
    assert helm(*command, "--set", "gateway.type=none").returncode == 0


@pytest.mark.parametrize("gateway", MESHES_AND_ENVOY_GATEWAY)
def test_a_client_s_own_model_header_is_removed(chart, gateway: str) -> None:
    def removed(*values: str) -> bool:
        spec = next(
            manifest["spec"]
            for manifest in chart(gateway, *values)
            if manifest["kind"] in {"ClientTrafficPolicy", "EnvoyFilter"}
        )
        if gateway == "envoy-gateway":
            return "x-llm-model" in spec["headers"]["earlyRequestHeaders"]["remove"]
        return {"remove": "x-llm-model"} in [
            mutation
            for patch in spec["configPatches"]
            if patch["applyTo"] == "NETWORK_FILTER"
            for extension in patch["patch"]["value"]["typed_config"][
                "early_header_mutation_extensions"
            ]
            for mutation in extension["typed_config"]["mutations"]
        ]

    assert removed(*MODELS, DEFAULT)
    assert not removed()


def test_a_model_header_of_the_gateway_is_a_route_too(chart) -> None:
    given = "config.model.header=x-gateway-model-name"
    routes = routes_of(chart("envoy-gateway", *MODELS, given))
    assert ({"x-gateway-model-name": "vlm"}, "vllm-vlm") in routes


def test_an_overflow_goes_to_the_largest_pool_of_its_model(chart) -> None:
    manifests = chart("envoy-gateway", *MODELS, DEFAULT, "gateway.retryOverflow=true")
    rules = http_route(manifests)["rules"]
    refs = {
        rule["matches"][0]["headers"][0]["value"]: [
            r["name"] for r in rule["backendRefs"]
        ]
        for rule in rules[:-1]
    }
    assert refs["llama-short"] == [
        "token-budget-router-llama-short",
        "token-budget-router-llama-long-fallback",
    ]
    (targets,) = [
        [target["sectionName"] for target in manifest["spec"]["targetRefs"]]
        for manifest in manifests
        if manifest["kind"] == "BackendTrafficPolicy"
        and manifest["metadata"]["name"].endswith("-overflow")
    ]
    assert targets == ["llama-short"]


def ai_rules(manifests: list[Manifest]) -> list[Manifest]:
    rules: list[Manifest] = only(manifests, "AIGatewayRoute")["spec"]["rules"]
    return rules


@pytest.mark.parametrize("overflow", [True, False])
def test_ai_gateway_routes_by_model_and_pool(chart, overflow: bool) -> None:
    """AI Gateway names the model, and the router one of the model's pools."""
    manifests = chart(
        "ai-gateway", *MODELS, f"gateway.retryOverflow={str(overflow).lower()}"
    )
    found = {
        rule["name"]: (
            [{h["name"]: h["value"] for h in m["headers"]} for m in rule["matches"]],
            [(ref["name"], ref["priority"]) for ref in rule["backendRefs"]],
        )
        for rule in ai_rules(manifests)
    }
    small = {"x-llm-pool": "llama-short"}
    name = "token-budget-router"
    fallback = [(f"{name}-llama-long", 1)] if overflow else []
    assert found == {
        "llama-short": (
            [
                {"x-ai-eg-model": "llama", **small},
                {"x-ai-eg-model": "support-.*", **small},
            ],
            [(f"{name}-llama-short", 0), *fallback],
        ),
        "llama-long": (
            [{"x-ai-eg-model": "llama"}, {"x-ai-eg-model": "support-.*"}],
            [(f"{name}-llama-long", 0)],
        ),
        "vlm": ([{"x-ai-eg-model": "vlm"}], [(f"{name}-vlm", 0)]),
    }
    retried = [
        target.get("sectionName")
        for manifest in manifests
        if manifest["kind"] == "BackendTrafficPolicy"
        and "httpStatusCodes" in manifest["spec"]["retry"]["retryOn"]
        for target in manifest["spec"]["targetRefs"]
    ]
    assert retried == (["llama-short"] if overflow else [])
    (text,) = only(manifests, "ConfigMap")["data"].values()
    assert load_config(text, {}).model.header == "x-ai-eg-model"


def test_ai_gateway_needs_models_and_has_its_own_paths(
    helm, envoy_folder: Path
) -> None:
    folder = envoy_folder / "helm/token-budget-router"
    command = ("template", "x", folder, "--set", "gateway.type=ai-gateway")
    assert "expected a model with its pools" in helm(*command).stderr
    models = helm_flags(MODELS)
    moved = helm(*command, *models, "--set", "gateway.pathPrefix=/team/v1")
    assert "gateway.pathPrefix" in moved.stderr
    pools = [{"name": f"p{i}", "max_model_len": 8192 * (i + 1)} for i in range(16)]
    many = helm_flags(
        (
            f"config.models:={json.dumps({'m': {'pools': pools}})}",
            *(f"backends.p{i}.service=vllm" for i in range(16)),
            *(f"backends.p{i}.port=8000" for i in range(16)),
        )
    )
    assert "16 pools; expected at most 15" in helm(*command, *many).stderr


def test_istio_has_the_same_routes(chart) -> None:
    service = virtual_service(chart("istio", *MODELS, DEFAULT))
    found = [
        (
            {k: v["exact"] for k, v in route["match"][0].get("headers", {}).items()},
            route["route"][0]["destination"]["host"].partition(".")[0],
        )
        for route in service["http"]
        if "route" in route
    ]
    assert found == BY_POOL + BY_MODEL + LAST


def test_a_sidecar_for_models_takes_an_envoy_configuration(
    helm, envoy_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text("admin: {}\n")
    folder = envoy_folder / "helm/token-budget-router"
    command = ("template", "x", folder, *helm_flags(MODELS))
    refused = helm(*command, "--set", "gateway.type=sidecar")
    assert "envoy.config for others (extproc routes --for envoy)" in refused.stderr
    done = helm(
        *command, "--set", "gateway.type=sidecar", "--set-file", f"envoy.config={file}"
    )
    assert done.returncode == 0, done.stderr
    assert "admin: {}" in done.stdout


def test_the_router_s_configuration_has_no_pools_beside_models(chart) -> None:
    (text,) = only(chart("base", *MODELS), "ConfigMap")["data"].values()
    assert set(yaml.safe_load(text)) == {"models", "log"}
