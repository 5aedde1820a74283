"""A real API server accepts every kustomization, and applying it again changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..deploy.conftest import CHART, VARIANTS, chart_values, helm_flags
from ..deploy.manifests import Manifest
from .cluster import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.xdist_group("kubernetes")]

Versions = dict[tuple[str, str], str]


@pytest.fixture(params=VARIANTS)
def applied(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    kustomize: Callable[[str], list[Manifest]],
) -> Iterator[tuple[str, list[Manifest]]]:
    """Apply a kustomization as ``kubectl apply -k`` does; yield its name and objects."""
    variant: str = request.param
    objects = kustomize(variant)
    try:
        done = cluster.kubectl("apply", "-f", "-", objects=objects)
        # The API server reports unknown and deprecated fields as warnings.
        assert (done.returncode, done.stderr) == (0, "")
        yield variant, objects
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", objects=objects)


def versions(cluster: Cluster, objects: list[Manifest]) -> Versions:
    """Return the objects' resource versions, which every change raises."""
    found = cluster.kubectl("get", "--output=json", "-f", "-", objects=objects)
    items = json.loads(found.stdout)["items"]
    assert len(items) == len(objects)
    return {
        (item["kind"], item["metadata"]["name"]): item["metadata"]["resourceVersion"]
        for item in items
    }


def test_a_second_apply_and_a_diff_are_quiet(
    cluster: Cluster, applied: tuple[str, list[Manifest]]
) -> None:
    _, objects = applied
    before = versions(cluster, objects)

    again = cluster.kubectl("apply", "-f", "-", objects=objects)
    difference = cluster.kubectl("diff", "-f", "-", objects=objects)

    assert again.returncode == 0, again.stderr
    assert (difference.returncode, difference.stdout) == (0, "")
    assert versions(cluster, objects) == before


def test_a_gitops_tool_takes_over_without_a_conflict(
    cluster: Cluster, applied: tuple[str, list[Manifest]]
) -> None:
    """Server-side apply refuses a field that another tool has set to another value."""
    _, objects = applied
    options = ("--server-side", "--field-manager=gitops", "-f", "-")

    first = cluster.kubectl("apply", *options, objects=objects)
    assert first.returncode == 0, first.stderr
    before = versions(cluster, objects)
    again = cluster.kubectl("apply", *options, objects=objects)
    difference = cluster.kubectl("diff", *options, objects=objects)

    assert again.returncode == 0, again.stderr
    assert (difference.returncode, difference.stdout) == (0, "")
    assert versions(cluster, objects) == before


OWN = {
    ".data.extproc.yaml",  # the text of the configuration, with the operator's comments
    '.spec.template.spec.volumes[name="envoy"].configMap.name',  # kustomize adds a hash
}
"""Fields that really differ between a kustomization and the chart."""


def test_helm_takes_over_what_kubectl_applied(
    cluster: Cluster, applied: tuple[str, list[Manifest]]
) -> None:
    variant, objects = applied
    namespace = objects[0]["metadata"].get("namespace", "default")
    sets = helm_flags(chart_values(variant))
    release = ("token-budget-router", f"--namespace={namespace}")
    options = (*release, str(CHART), "--install", "--take-ownership", *sets)
    try:
        refused = cluster.helm("upgrade", *options)
        conflicts = re.findall(
            r"(?:using \S+: |^- )(\.\S+)", refused.stderr, re.MULTILINE
        )
        assert conflicts
        assert set(conflicts) <= OWN
        done = cluster.helm("upgrade", *options, "--force-conflicts")
        assert done.returncode == 0, done.stderr
    finally:
        cluster.helm("uninstall", *release)


def pods(objects: list[Manifest]) -> Iterator[Manifest]:
    """Yield the pods that a Deployment's controller would create."""
    for item in objects:
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]
            metadata = {**pod["metadata"], "name": item["metadata"]["name"]}
            yield {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": metadata}


@pytest.fixture(scope="module")
def restricted(cluster: Cluster) -> str:
    """Create a namespace that enforces the restricted Pod Security standard."""
    name = "restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    assert cluster.ask("POST", "/api/v1/namespaces", body)["kind"] == "Namespace"
    # A controller of a cluster creates each namespace's account; there is none here.
    for account in ("default", "token-budget-router"):
        cluster.kubectl("create", "serviceaccount", account, f"--namespace={name}")
    return name


def created(cluster: Cluster, namespace: str, pod: Manifest) -> Manifest:
    metadata = {**pod["metadata"], "namespace": namespace}
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict"
    return cluster.ask("POST", path, {**pod, "metadata": metadata})


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_are_admitted_under_the_restricted_standard(
    cluster: Cluster, kustomize: Any, restricted: str, variant: str
) -> None:
    (pod,) = pods(kustomize(variant))
    answer = created(cluster, restricted, pod)
    assert answer["kind"] == "Pod", answer["message"]


def test_a_pod_without_a_security_context_is_refused(
    cluster: Cluster, kustomize: Any, restricted: str
) -> None:
    (pod,) = pods(kustomize("base"))
    spec = {k: v for k, v in pod["spec"].items() if k != "securityContext"}
    answer = created(cluster, restricted, {**pod, "spec": spec})
    assert answer["reason"] == "Forbidden"
    assert "restricted" in answer["message"]


def test_the_chart_s_test_pod_is_admitted_too(
    cluster: Cluster, helm: Any, restricted: str, envoy_folder: Path
) -> None:
    done = helm(
        *("template", "release", envoy_folder / "helm/token-budget-router"),
        *("--show-only", "templates/tests/ready.yaml"),
    )
    pod = yaml.safe_load(done.stdout)
    answer = created(cluster, restricted, pod)
    assert answer["kind"] == "Pod", answer["message"]
