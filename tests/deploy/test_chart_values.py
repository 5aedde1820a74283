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

from .conftest import GATEWAYS
from .manifests import CORE, KUBERNETES, Manifest, only

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
