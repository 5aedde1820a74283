"""The Helm chart and the kustomize overlays render the same objects."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

from .manifests import Manifest

HELM_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")
CHART = "helm/token-budget-router"


def by_identity(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return objects by kind and name, without fields that only one tool adds."""
    found = {}
    for manifest in manifests:
        name = without_hash(manifest["metadata"]["name"])
        identity = f"{manifest['apiVersion']} {manifest['kind']} {name}"
        assert identity not in found
        found[identity] = normalized(manifest)
    return found


def normalized(manifest: Manifest) -> Manifest:
    manifest = copy.deepcopy(manifest)
    metadata = manifest["metadata"]
    metadata["name"] = without_hash(metadata["name"])
    # The base leaves the namespace to the operator, but the chart uses the namespace of
    # the release.
    if metadata.get("namespace", "llm") == "llm":
        metadata["namespace"] = "llm"
    for label in HELM_LABELS:
        metadata.get("labels", {}).pop(label, None)
    match manifest["kind"]:
        case "Service":
            manifest["spec"]["ports"].sort(key=by_name)
        case "ConfigMap":
            manifest["data"] = {
                key: yaml.safe_load(text) if key.endswith((".yaml", ".json")) else text
                for key, text in manifest["data"].items()
            }
        case "Deployment":
            pod = manifest["spec"]["template"]
            # Both tools restart the pods when Envoy's file changes: kustomize by a hash
            # in the ConfigMap's name, and helm by a hash in an annotation.
            pod["metadata"].pop("annotations", None)
            # Patches put their items first, but the order does not matter.
            pod["spec"]["volumes"].sort(key=by_name)
            for container in pod["spec"]["containers"]:
                for names in ("env", "ports", "volumeMounts"):
                    container.get(names, []).sort(key=by_name)
            for volume in pod["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = without_hash(
                        volume["configMap"]["name"]
                    )
    return manifest


def by_name(value: Manifest) -> str:
    return str(value["name"])


def without_hash(name: str) -> str:
    return re.sub(r"^(token-budget-router-envoy)-[a-z0-9]{10}$", r"\1", name)


def test_chart_and_overlay_agree(variant, kustomize, chart):
    expected = by_identity(kustomize(variant))
    rendered = by_identity(chart(variant))
    assert sorted(rendered) == sorted(expected)
    for identity, manifest in expected.items():
        assert rendered[identity] == manifest, identity


def test_both_restart_pods_when_envoy_s_file_changes(kustomize, chart):
    def template(manifests: list[Manifest]) -> Manifest:
        return next(m for m in manifests if m["kind"] == "Deployment")["spec"][
            "template"
        ]

    volumes = template(kustomize("sidecar"))["spec"]["volumes"]
    names = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    assert any(without_hash(name) != name for name in names)
    before = template(chart("sidecar"))["metadata"]["annotations"]
    after = template(chart("sidecar", "backends.short.service=other"))["metadata"][
        "annotations"
    ]
    assert before != after


def test_chart_passes_helm_s_lint(helm, envoy_folder: Path):
    done = helm("lint", "--strict", envoy_folder / CHART)
    assert done.returncode == 0, done.stdout + done.stderr


def test_chart_packages_with_what_it_needs(helm, envoy_folder: Path, tmp_path: Path):
    done = helm("package", envoy_folder / CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.iterdir()
    done = helm("template", "packed", package, "--set", "gateway.type=sidecar")
    assert done.returncode == 0, done.stderr
    assert "listeners:" in done.stdout


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (["gateway.type=isto"], "gateway/type"),
        (["replica=3"], "replica"),
        (["image.pullPolicy=Sometimes"], "pullPolicy"),
        (["image.digest=1234"], "digest"),
        (["autoscaling.minReplicas=20"], "autoscaling.minReplicas: 20"),
        (["gateway.type=gke", "tls.secret=certificate"], "tls.secret: certificate"),
        (["gateway.pathPrefix=v1"], "pathPrefix"),
        (["gateway.messageTimeout=soon"], "messageTimeout"),
        (
            [
                "gateway.type=gke",
                "config.pools[0].name=tiny",
                "config.pools[0].max_model_len=512",
            ],
            "backends.tiny: missing",
        ),
        (
            [
                "gateway.type=sidecar",
                "config.pools[0].name=tiny",
                "config.pools[0].max_model_len=512",
            ],
            "expected the pools short and long",
        ),
        (["gateway.type=istio", "workers=2"], "calls one port of a Service"),
        (["transport=http2"], "transport"),
        (["gateway.type=envoy-gateway", "workers=17"], "workers: 17"),
        (["gateway.type=istio", "gateway.selector.istio=null"], "gateway.selector"),
        (
            ["gateway.type=istio", "backends.short.service=vllm.models"],
            "backends.short.service: vllm.models",
        ),
        (
            ["gateway.type=inference-extension", "gateway.bufferLimitBytes=500000"],
            "gateway.bufferLimitBytes: 500000",
        ),
        (["gateway.type=gke", "gateway.accessLog=true"], "gateway.accessLog: true"),
        (
            [
                "gateway.type=envoy-gateway",
                "gateway.accessLog=true",
                "gateway.parentNamespace=gateways",
            ],
            "gateway.parentNamespace gateways",
        ),
        (["gateway.hosts[0]=LLM.example.com"], "gateway/hosts"),
        (["gateway.pathPrefix=/team/../v1"], "pathPrefix"),
        (["gateway.messageTimeout=0s"], "messageTimeout"),
        (["podLabels.team=a b"], "podLabels"),
        (["commonLabels.app\\.kubernetes\\.io/name=x"], "commonLabels"),
        (["state.secret=Redis"], "state/secret"),
        (["otel.endpoint=http://collector:99999"], "otel/endpoint"),
        (
            ["gateway.type=gke", "networkPolicy.gkeRanges[0]=10.1.2.3/8"],
            "networkPolicy.gkeRanges: 10.1.2.3/8",
        ),
        (
            [
                "gateway.type=istio",
                "config.pools[0].name=Short",
                "config.pools[0].max_model_len=8192",
            ],
            "config pool Short",
        ),
        (
            [
                "gateway.type=inference-extension",
                "backends.short.podLabels.app=null",
                "backends.short.podLabels.llm-pool=null",
            ],
            "backends.short.podLabels: {}",
        ),
    ],
    ids=[
        *("gateway", "unknown", "pull-policy", "digest", "autoscaling", "tls", "path"),
        *("duration", "backend", "sidecar-pools"),
        *("workers", "transport"),
        *("many-workers", "selector", "service", "buffer"),
        *("no-access-log", "access-log-elsewhere"),
        *("host", "prefix", "no-time", "label", "own-label", "secret", "port"),
        *("range", "pool-name", "pod-labels"),
    ],
)
def test_chart_refuses_a_mistake(helm, envoy_folder: Path, values, complaint):
    sets = [argument for value in values for argument in ("--set", value)]
    done = helm("template", "x", envoy_folder / CHART, *sets)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_third_pool_becomes_a_route_before_the_last(chart):
    manifests = chart(
        "istio",
        "config.pools[0].name=short",
        "config.pools[0].max_model_len=8192",
        "config.pools[1].name=middle",
        "config.pools[1].max_model_len=32768",
        "config.pools[2].name=long",
        "config.pools[2].max_model_len=131072",
        "backends.middle.service=vllm-middle",
        "backends.middle.port=8000",
    )
    (service,) = [
        m
        for m in manifests
        if m["kind"] == "VirtualService"
        and not m["metadata"]["name"].endswith("-cluster")
    ]
    matched = [
        route["match"][0].get("headers")
        for route in service["spec"]["http"]
        if "route" in route
    ]
    assert matched == [
        {"x-llm-pool": {"exact": "short"}},
        {"x-llm-pool": {"exact": "middle"}},
        None,
    ]
