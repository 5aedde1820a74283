"""The chart values of a gateway (hosts, paths, namespaces) appear in its objects."""

from __future__ import annotations

import json

import pytest

from .manifests import http_route, only, virtual_service


def test_routes_take_hosts_path_and_the_gateway_s_namespace(chart) -> None:
    values = (
        "gateway.hosts[0]=llm.example.com",
        "gateway.pathPrefix=/team/v1",
        "gateway.parentNamespace=gateways",
    )
    route = http_route(chart("envoy-gateway", *values))
    assert route["hostnames"] == ["llm.example.com"]
    assert route["parentRefs"][0]["namespace"] == "gateways"
    paths = {m["path"]["value"] for rule in route["rules"] for m in rule["matches"]}
    assert paths == {"/team/v1"}
    service = virtual_service(chart("istio", *values))
    assert service["hosts"] == ["llm.example.com"]
    assert {
        match["uri"]["prefix"]
        for rule in service["http"]
        for match in rule["match"]
        if "route" in rule
    } == {"/team/v1/"}


def test_the_pools_get_another_prefix(chart) -> None:
    values = ("gateway.pathPrefix=/team/v1", "gateway.rewritePrefix=/v1")
    for gateway in ("envoy-gateway", "gke", "inference-extension", "istio-gateway-api"):
        for rule in http_route(chart(gateway, *values))["rules"]:
            (change,) = rule["filters"]
            assert change["urlRewrite"]["path"]["replacePrefixMatch"] == "/v1"
    for rule in virtual_service(chart("istio", *values))["http"]:
        assert ("rewrite" in rule) == ("route" in rule)
        assert rule.get("rewrite", {}).get("uri", "/v1/") == "/v1/"


def test_adapters_are_closed_on_every_host_of_the_routes(chart) -> None:
    values = ("gateway.hosts[0]=llm.example.com", "gateway.parentNamespace=gateways")
    routes = [
        manifest["spec"]
        for manifest in chart("envoy-gateway", *values)
        if manifest["kind"] == "HTTPRoute"
    ]
    assert len(routes) == 2
    for key in ("hostnames", "parentRefs"):
        assert routes[0][key] == routes[1][key]


@pytest.mark.parametrize("gateway", ["istio-gateway-api", "inference-extension"])
def test_what_patches_a_gateway_is_in_its_namespace(chart, gateway: str) -> None:
    """An EnvoyFilter applies only to a Gateway in its own namespace."""
    manifests = chart(gateway, "gateway.parentNamespace=gateways")
    for manifest in manifests:
        elsewhere = manifest["kind"] == "EnvoyFilter"
        expected = "gateways" if elsewhere else "llm"
        assert manifest["metadata"]["namespace"] == expected
        if manifest["kind"] == "HTTPRoute":
            (parent,) = manifest["spec"]["parentRefs"]
            assert parent["namespace"] == "gateways"
    callers = only(manifests, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = {"kubernetes.io/metadata.name": "gateways"}
    assert {"namespaceSelector": {"matchLabels": labels}} in callers


def test_the_network_policy_lets_in_the_pods_of_a_gateway_elsewhere(chart) -> None:
    values = ("inference-extension", "gateway.parentNamespace=gateways")
    ingress = only(chart(*values), "NetworkPolicy")["spec"]["ingress"]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}
    assert {"namespaceSelector": selector} in ingress[0]["from"]


def test_inference_pools_that_exist_are_used(chart) -> None:
    """Another chart or release created them, so their pods' labels are not needed."""
    values = ("gateway.createInferencePools=false", "backends.short.podLabels:=null")
    manifests = chart("inference-extension", *values)
    assert "InferencePool" not in {manifest["kind"] for manifest in manifests}
    assert [
        reference["name"]
        for rule in http_route(manifests)["rules"]
        for reference in rule.get("backendRefs", ())
        if reference["kind"] == "InferencePool"
    ] == ["vllm-short", "vllm-long"]


def test_the_access_log_of_envoy_gateway_names_gateway_and_router(chart) -> None:
    manifests = chart(
        "envoy-gateway",
        *("gateway.accessLog=true", "gateway.name=public", "gateway.listener=https"),
        "fullnameOverride=budget",
    )
    policy = only(manifests, "EnvoyPatchPolicy")["spec"]
    assert policy["targetRef"]["name"] == "public"
    assert {each["name"] for each in policy["jsonPatches"]} == {"llm/public/https"}
    settings = only(manifests, "EnvoyProxy")["spec"]["telemetry"]["accessLog"]
    assert [
        reference["name"]
        for setting in settings["settings"]
        for sink in setting["sinks"]
        for reference in sink.get("als", {}).get("backendRefs", ())
    ] == ["budget"]


@pytest.mark.parametrize(
    ("value", "seconds"), [("500ms", "0.5s"), ("2s", "2s"), ("1m", "60s")]
)
def test_envoy_and_google_get_the_timeout_in_seconds(
    chart, value: str, seconds: str
) -> None:
    setting = f"gateway.messageTimeout={value}"
    for gateway in ("istio", "inference-extension"):
        text = json.dumps(chart(gateway, setting))
        assert f'"message_timeout": "{seconds}"' in text
    extension = only(chart("gke", setting), "GCPRoutingExtension")
    assert f'"timeout": "{seconds}"' in json.dumps(extension)
