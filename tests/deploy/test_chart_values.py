"""Chart values that a platform team sets appear in the chart's objects."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config import load_config

from .conftest import chart_values, helm_flags

Manifest = dict[str, Any]

KUBERNETES = "1.35"
CORE = ("v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1")

PLATFORM = (
    "image.repository=registry.example/llm/router",
    f"image.digest=sha256:{'0123456789abcdef' * 4}",
    "image.pullPolicy=Always",
    "imagePullSecrets[0].name=registry",
    "fullnameOverride=llm-router",
    "commonLabels.team=inference",
    "podLabels.cost-center=ml",
    "podAnnotations.note=fleet",
    "nodeSelector.pool=general",
    'tolerations:=[{"key": "dedicated", "operator": "Exists"}]',
    'affinity:={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":'
    ' {"nodeSelectorTerms": [{"matchExpressions":'
    ' [{"key": "arch", "operator": "In", "values": ["arm64"]}]}]}}}',
    "priorityClassName=high",
    'topologySpreadConstraints:=[{"maxSkew": 1, "topologyKey": "zone",'
    ' "whenUnsatisfiable": "ScheduleAnyway"}]',
    "podSecurityContext.runAsUser=null",
    "podSecurityContext.runAsGroup=null",
    "podSecurityContext.fsGroup=null",
    "serviceAccount.annotations.role=router",
    "serviceAccount.name=llm-router-account",
    "service.type=LoadBalancer",
    "service.annotations.internal=yes",
    'extraEnv:=[{"name": "TZ", "value": "UTC"}]',
    'extraEnvFrom:=[{"configMapRef": {"name": "proxy"}}]',
    'extraVolumes:=[{"name": "ca", "configMap": {"name": "ca"}}]',
    'extraVolumeMounts:=[{"name": "ca", "mountPath": "/etc/ca"}]',
    "autoscaling.enabled=false",
    "replicas=5",
    "otel.endpoint=http://collector.observability:4317",
    "apiKeys.secret=vllm-keys",
    "config.pools[0].name=short",
    "config.pools[0].max_model_len=8192",
    "config.pools[0].api_key_file=/etc/extproc-keys/short",
    "config.pools[1].name=long",
    "config.pools[1].max_model_len=65536",
    "persistence.enabled=true",
    "config.recording.file=/var/lib/extproc/recording.jsonl",
    "networkPolicy.dns.port=5353",
    'networkPolicy.dns.peers:=[{"namespaceSelector":'
    ' {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}]',
)
NONE = (*PLATFORM, "tls.secret=certificate", "tls.clientCa=true")
GATEWAYS = (
    "envoy-gateway",
    "istio",
    "istio-gateway-api",
    "gke",
    "inference-extension",
    "sidecar",
)


MESHES_AND_ENVOY_GATEWAY = (*GATEWAYS[:3], "inference-extension")


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def http_route(manifests: list[Manifest]) -> Manifest:
    """Return the HTTPRoute that leads to the pools."""
    (found,) = [
        manifest["spec"]
        for manifest in manifests
        if manifest["kind"] == "HTTPRoute"
        and not manifest["metadata"]["name"].endswith(("-administration", "-cluster"))
    ]
    return found


def virtual_service(manifests: list[Manifest]) -> Manifest:
    """Return the VirtualService with the routes, not the one that keeps the cluster."""
    (found,) = [
        manifest["spec"]
        for manifest in manifests
        if manifest["kind"] == "VirtualService"
        and not manifest["metadata"]["name"].endswith("-cluster")
    ]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    template: Manifest = only(manifests, "Deployment")["spec"]["template"]
    return template


@pytest.mark.parametrize("variant", ["ai-gateway", "base", *GATEWAYS])
def test_core_objects_follow_their_schemas(chart, variant: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    manifests = chart(variant, *(NONE if variant == "base" else PLATFORM))
    checked = [m for m in manifests if m["apiVersion"] in CORE]
    assert len(checked) >= 6
    for manifest in checked:
        # The API server drops nulls, which the schemas reject.
        schemas.validate(without_nulls(manifest), KUBERNETES, strict=True)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


EVERY_VALUE = Path(__file__).with_name("every_value.yaml")


def leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values of nested mappings, each with its path of keys."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, each in value.items():
        yield from leaves(each, *path, key)


def test_every_value_is_set_to_another_than_its_default(envoy_folder: Path) -> None:
    file = envoy_folder / "helm/token-budget-router/values.yaml"
    every = dict(leaves(yaml.safe_load(EVERY_VALUE.read_text())))
    elsewhere = {("gateway", "type"), ("gateway", "accessLog"), ("envoy", "config")}
    for path, default in leaves(yaml.safe_load(file.read_text())):
        known = [found for set_, found in every.items() if set_[: len(path)] == path]
        # Mappings of labels may have additional keys.
        labels = [s for s in every if s[:-1] == path[:-1] and "abels" in path[-2:][0]]
        assert known or labels, f"{path}: not in {EVERY_VALUE.name}"
        assert [default] != known or path in elsewhere, path


@pytest.mark.parametrize(
    ("gateway", "more"),
    [
        ("none", ()),
        ("envoy-gateway", ("--set=tls.secret=,tls.clientCa=false",)),
        ("istio", ("--set=workers=1,tls.secret=,tls.clientCa=false",)),
        ("gke", ("--set=workers=1,tls.secret=,tls.clientCa=false",)),
        ("inference-extension", ("--set=workers=1,tls.secret=,tls.clientCa=false",)),
        ("istio-gateway-api", ("--set=workers=1,tls.secret=,tls.clientCa=false",)),
        ("sidecar", ("--set=tls.secret=,tls.clientCa=false",)),
    ],
)
def test_every_value_renders_valid_objects(
    helm, envoy_folder: Path, gateway: str, more: tuple[str, ...]
) -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    done = helm(
        *("template", "release", envoy_folder / "helm/token-budget-router"),
        *("--values", EVERY_VALUE, f"--set=gateway.type={gateway}", *more),
    )
    assert done.returncode == 0, done.stderr
    manifests = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert "Deployment" in {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["team"] == "inference"
        if manifest["apiVersion"] in CORE:
            schemas.validate(without_nulls(manifest), KUBERNETES, strict=True)


def test_the_pod_has_what_was_set(chart) -> None:
    pod = pod_of(chart("base", *NONE))
    labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
    assert (labels["team"], labels["cost-center"]) == ("inference", "ml")
    assert annotations["note"] == "fleet"
    spec = pod["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"pool": "general"}
    assert spec["tolerations"][0]["key"] == "dedicated"
    assert "nodeAffinity" in spec["affinity"]
    assert spec["priorityClassName"] == "high"
    assert [c["topologyKey"] for c in spec["topologySpreadConstraints"]] == ["zone"]
    assert spec["serviceAccountName"] == "llm-router-account"
    # OpenShift's admission sets these user and group fields.
    assert {"runAsUser", "runAsGroup", "fsGroup"}.isdisjoint(
        without_nulls(spec["securityContext"])
    )
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    assert container["image"].startswith("registry.example/llm/router@sha256:")
    assert container["imagePullPolicy"] == "Always"
    assert {"name": "TZ", "value": "UTC"} in container["env"]
    assert container["envFrom"] == [{"configMapRef": {"name": "proxy"}}]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {
        "config": "/etc/extproc",
        "tls": "/etc/extproc-tls",
        "api-keys": "/etc/extproc-keys",
        "data": "/var/lib/extproc",
        "ca": "/etc/ca",
    }
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts)
    # A gRPC probe does not support TLS, so the probe uses HTTP.
    assert "httpGet" in container["readinessProbe"]


def test_replicas_take_the_autoscaler_s_place(chart) -> None:
    manifests = chart("base", *PLATFORM)
    assert only(manifests, "Deployment")["spec"]["replicas"] == 5
    assert not [m for m in manifests if m["kind"] == "HorizontalPodAutoscaler"]
    by_default = chart("base")
    assert "replicas" not in only(by_default, "Deployment")["spec"]
    scaler = only(
        chart("base", "autoscaling.decisionsPerSecond=0"), "HorizontalPodAutoscaler"
    )
    assert [metric["type"] for metric in scaler["spec"]["metrics"]] == ["Resource"]


def test_the_router_takes_the_configuration(chart) -> None:
    (text,) = only(chart("base", *NONE), "ConfigMap")["data"].values()
    config = load_config(text, {})
    assert config.otel.enabled
    assert config.server.tls is not None
    assert config.server.tls.client_ca_file == "/etc/extproc-tls/ca.crt"
    assert config.pools[0].api_key_file == "/etc/extproc-keys/short"
    assert config.recording.file == "/var/lib/extproc/recording.jsonl"


def test_the_network_policy_lets_out_what_was_set(chart) -> None:
    rules = only(chart("base", *PLATFORM), "NetworkPolicy")["spec"]["egress"]
    ports = [port["port"] for rule in rules for port in rule["ports"]]
    assert ports == [8000, 5353, 5353, 4317]
    plain = only(chart("base"), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in plain for port in rule["ports"]] == [8000, 53, 53]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector:4317", 4317),
        ("http://10.0.0.5", 80),
        ("https://collector7/v1", 443),
    ],
)
def test_the_network_policy_lets_out_to_the_collector_s_port(
    chart, endpoint: str, port: int
) -> None:
    (rule,) = [
        rule
        for rule in only(chart("base", f"otel.endpoint={endpoint}"), "NetworkPolicy")[
            "spec"
        ]["egress"]
        if "to" not in rule and len(rule["ports"]) == 1
    ]
    assert rule["ports"][0]["port"] == port


def test_the_network_policy_lets_in_the_pods_of_a_gateway_elsewhere(chart) -> None:
    values = ("inference-extension", "gateway.parentNamespace=gateways")
    ingress = only(chart(*values), "NetworkPolicy")["spec"]["ingress"]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}
    assert {"namespaceSelector": selector} in ingress[0]["from"]


def test_a_label_of_the_pods_takes_precedence(chart) -> None:
    """No object has a key twice, which the API server refuses."""
    key = "sidecar\\.istio\\.io/inject"

    def labels(*values: str) -> dict[str, str]:
        found: dict[str, str] = pod_of(chart("base", *values))["metadata"]["labels"]
        return found

    assert labels()["sidecar.istio.io/inject"] == "false"
    # A flag of --set-json: --set would send a boolean.
    assert labels(f'podLabels.{key}:="true"')["sidecar.istio.io/inject"] == "true"
    both = labels("commonLabels.team=a", "podLabels.team=b", "monitoring.enabled=true")
    assert both["team"] == "b"
    monitor = only(
        chart(
            "base",
            "monitoring.enabled=true",
            "monitoring.labels.team=b",
            "commonLabels.team=a",
        ),
        "ServiceMonitor",
    )
    assert monitor["metadata"]["labels"]["team"] == "b"


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


@pytest.mark.parametrize(
    ("setting", "restarts"),
    [
        ("config.state.store=directory", True),
        ("config.recording.file=/var/lib/extproc/r", True),
        ("otel.endpoint=http://collector:4317", True),
        ("config.server.max_body_bytes=1000000", True),
        ("config.risk.under_estimate_rate=0.02", False),
        ("config.log.level=debug", False),
    ],
)
def test_a_setting_that_takes_a_restart_restarts_the_pods(
    chart, setting: str, restarts: bool
) -> None:
    before, after = pod_of(chart("base")), pod_of(chart("base", setting))
    checksum = "checksum/restart"
    differs = (
        before["metadata"]["annotations"][checksum]
        != after["metadata"]["annotations"][checksum]
    )
    assert differs is restarts


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


@pytest.mark.parametrize("gateway", ["none", "sidecar", "envoy-gateway"])
def test_helm_test_asks_the_router(helm, envoy_folder: Path, gateway: str) -> None:
    done = helm(
        *("template", "release", envoy_folder / "helm/token-budget-router"),
        *("--show-only", "templates/tests/ready.yaml"),
        *("--set", f"gateway.type={gateway}"),
    )
    assert done.returncode == 0, done.stderr
    pod = yaml.safe_load(done.stdout)
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    pytest.importorskip("kubernetes_validate").validate(pod, KUBERNETES, strict=True)
    (container,) = pod["spec"]["containers"]
    compile(container["command"][-1], "test", "exec")


def test_the_schema_describes_every_value(envoy_folder: Path) -> None:
    """Every chart value has a default; the README is generated from schema and
    defaults.
    """
    folder = envoy_folder / "helm/token-budget-router"
    schema = json.loads((folder / "values.schema.json").read_text())
    defaults = yaml.safe_load((folder / "values.yaml").read_text())
    described = copy.deepcopy(schema["properties"])
    del described["global"]
    assert described.keys() == defaults.keys()
    for name, value in described.items():
        if "description" in value:
            continue
        assert value["properties"].keys() == defaults[name].keys(), name
        for inner in value["properties"].values():
            assert inner["description"].endswith(".")


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
    values = [flag for value in MODELS[1:] for flag in ("--set", value)]
    models = ("--set-json", MODELS[0].replace(":=", "=", 1))
    command = ("template", "x", folder, *models, *values)
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
    values = [flag for value in MODELS[1:] for flag in ("--set", value)]
    models = ("--set-json", MODELS[0].replace(":=", "=", 1))
    command = ("template", "x", folder, *models, *values)
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


@pytest.mark.parametrize("gateway", ["ai-gateway", *GATEWAYS])
def test_two_releases_share_no_object(helm, envoy_folder: Path, gateway: str) -> None:
    """Neither two releases in one namespace nor one name in two namespaces collide."""
    options = helm_flags([*chart_values(gateway), "monitoring.enabled=true"])
    if gateway == "envoy-gateway":
        options += ["--set", "gateway.retryOverflow=true"]

    def objects(name: str, namespace: str) -> set[tuple[str, str, str]]:
        chart = str(envoy_folder / "helm/token-budget-router")
        done = helm("template", name, chart, "--namespace", namespace, *options)
        assert done.returncode == 0, done.stderr
        manifests = [m for m in yaml.safe_load_all(done.stdout) if m is not None]
        return {
            (m["kind"], m["metadata"]["namespace"], m["metadata"]["name"])
            for m in manifests
            if m["kind"] not in SHARED
        } | {("added to the gateway", "", name) for name in added(manifests)}

    first, second, third = (
        objects(*release) for release in (("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert not first & second
    assert not first & third


def added(manifests: list[Manifest]) -> Iterator[str]:
    """Yield the names of the filters and clusters that EnvoyFilters add to a gateway."""
    for manifest in manifests:
        if manifest["kind"] == "EnvoyFilter":
            for patch in manifest["spec"]["configPatches"]:
                if patch["patch"]["operation"] != "MERGE":
                    yield patch["patch"]["value"]["name"]


SHARED = {"InferencePool"}
"""Kinds of objects that two releases can share, because they belong to the pools."""


@pytest.mark.parametrize("name", ["123", "a.b"])
def test_a_release_that_no_service_can_be_named_after_needs_another_name(
    helm, envoy_folder: Path, name: str
) -> None:
    command = ("template", name, envoy_folder / "helm/token-budget-router")
    assert f"release name {name}: not the name of a Service" in helm(*command).stderr
    assert helm(*command, "--set", "fullnameOverride=router").returncode == 0


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_names_that_look_like_numbers_stay_texts(
    helm, envoy_folder: Path, gateway: str
) -> None:
    chart = str(envoy_folder / "helm/token-budget-router")
    names = ("1", "true")
    pools = [{"name": name, "max_model_len": 8192} for name in names]
    backends = {
        name: {"service": "vllm", "port": 8000, "podLabels": {"pool": name}}
        for name in names
    }
    values = [
        *("--set-json", f"config.pools={json.dumps(pools)}"),
        *("--set-json", f"backends={json.dumps(backends)}"),
    ]
    if gateway == "sidecar":  # the sidecar only has routes for the pools short and long
        values = []
    done = helm("template", "true", chart, "--set", f"gateway.type={gateway}", *values)
    assert done.returncode == 0, done.stderr
    for manifest in yaml.safe_load_all(done.stdout):
        for key, value in texts(manifest):
            assert isinstance(value, str), (manifest["kind"], key, value)


def texts(value: Any) -> list[tuple[str, Any]]:
    """Return an object's names, and the values of its labels and header matches."""
    found: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"labels", "matchLabels"}:
                found += inner.items()
            elif key in {"name", "exact", "namespace"}:
                found.append((key, inner))
            found += texts(inner)
    elif isinstance(value, list):
        for inner in value:
            found += texts(inner)
    return found
