"""Releases of the chart on a real API server: side by side, upgraded and removed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ..deploy.conftest import CHART, chart_values, helm_flags
from ..deploy.manifests import Manifest
from .cluster import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.xdist_group("kubernetes")]

COMMON = ("monitoring.enabled=true", "persistence.enabled=true", "state.secret=redis")
OPTIONS = {
    "none": COMMON,
    "ai-gateway": COMMON,
    "envoy-gateway": (
        *COMMON,
        "gateway.retryOverflow=true",
        "workers=4",
        "gateway.accessLog=true",
    ),
    "istio": COMMON,
    "istio-gateway-api": COMMON,
    "gke": COMMON,
    # InferencePools belong to the servers, so two releases need Services of their own.
    "inference-extension": COMMON,
    "sidecar": (*COMMON, "envoy.accessLog=true"),
}
"""Gateway types, each with its optional parts."""

KINDS = (
    *("all", "configmaps", "serviceaccounts", "networkpolicies"),
    *("poddisruptionbudgets", "persistentvolumeclaims", "servicemonitors"),
    *("prometheusrules", "httproutes", "backends", "backendtrafficpolicies"),
    *(
        "clienttrafficpolicies",
        "envoyextensionpolicies",
        "httproutefilters",
        "envoyproxies",
        "envoypatchpolicies",
    ),
    *("aigatewayroutes", "aiservicebackends"),
    *("destinationrules", "virtualservices", "envoyfilters", "inferencepools"),
    *("gcpbackendpolicies", "gcproutingextensions", "healthcheckpolicies"),
)


def found(cluster: Cluster) -> dict[tuple[str, str, str], Manifest]:
    """Return the charts' objects in all namespaces, without their resource versions.

    The API server gives a volume claim a new version even if nothing changes.
    """
    options = ("--all-namespaces", "--selector=helm.sh/chart", "--output=json")
    done = cluster.kubectl("get", ",".join(KINDS), *options)
    assert done.returncode == 0, done.stderr
    objects = {}
    for item in json.loads(done.stdout)["items"]:
        metadata = item["metadata"]
        del metadata["resourceVersion"]
        # A controller of a cluster would complete the removal of a volume claim.
        if "deletionTimestamp" not in metadata:
            identity = (item["kind"], metadata["namespace"], metadata["name"])
            objects[identity] = item
    return objects


class Releases:
    """The releases of one test, which are removed after it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._installed: set[tuple[str, str]] = set()

    def install(self, name: str, namespace: str, gateway: str, *more: str) -> None:
        """Install or upgrade a release with all options of a gateway type."""
        name_of = "base" if gateway == "none" else gateway
        sets = helm_flags((*chart_values(name_of), *OPTIONS[gateway], *more))
        options = ("--namespace", namespace, "--create-namespace", "--install")
        self._installed.add((name, namespace))
        done = self._cluster.helm("upgrade", name, CHART, *options, *sets)
        assert done.returncode == 0, done.stderr
        assert "WARN" not in done.stderr

    def remove(self) -> None:
        for name, namespace in self._installed:
            done = self._cluster.helm("uninstall", name, "--namespace", namespace)
            assert done.returncode == 0, done.stderr
        self._installed.clear()


@pytest.fixture
def releases(cluster: Cluster) -> Iterator[Releases]:
    made = Releases(cluster)
    yield made
    made.remove()


@pytest.mark.parametrize("gateway", OPTIONS)
def test_releases_side_by_side_do_not_change_each_other(
    cluster: Cluster, releases: Releases, gateway: str
) -> None:
    """Two names in one namespace, and one name in two namespaces."""
    services = (
        "backends.short.service=other-short",
        "backends.long.service=other-long",
    )
    releases.install("a", "one", gateway)
    first = found(cluster)
    assert len(first) >= 8
    releases.install("b", "one", gateway, *services)
    releases.install("a", "two", gateway)

    together = found(cluster)
    assert len(together) == 3 * len(first)
    assert {key: together[key] for key in first} == first
    # The same values again change nothing.
    releases.install("a", "one", gateway)
    assert found(cluster) == together
    releases.remove()
    assert found(cluster) == {}


def test_a_release_changes_its_gateway(cluster: Cluster, releases: Releases) -> None:
    """Each upgrade removes the objects of the gateway type before it."""
    kinds = {}
    for gateway in (*OPTIONS, "none"):
        releases.install("a", "three", gateway)
        kinds[gateway] = {kind for kind, _, _ in found(cluster)}
    assert kinds["none"] == kinds["sidecar"]  # its Envoy runs in the same pods
    for gateway in (
        "ai-gateway",
        "envoy-gateway",
        "istio",
        "istio-gateway-api",
        "gke",
        "inference-extension",
    ):
        assert kinds["none"] < kinds[gateway]
    assert kinds["istio"] & kinds["gke"] == kinds["none"]

    rolled_back = cluster.helm("rollback", "a", "4", "--namespace", "three")
    assert rolled_back.returncode == 0, rolled_back.stderr
    assert {kind for kind, _, _ in found(cluster)} == kinds["istio"]
