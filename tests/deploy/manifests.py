"""The objects of an overlay or of the chart, and how a test finds one of them."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]

KUBERNETES = "1.35"
"""The Kubernetes version of the schemas, which equals the version of kubectl."""
CORE = ("v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1")
"""The API versions of the objects that those schemas describe."""


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind)
    return found


def http_route(manifests: list[Manifest]) -> Manifest:
    """Return the HTTPRoute that leads to the pools."""
    (found,) = [
        manifest["spec"]
        for manifest in of_kind(manifests, "HTTPRoute")
        if not manifest["metadata"]["name"].endswith(("-administration", "-cluster"))
    ]
    return found


def virtual_service(manifests: list[Manifest]) -> Manifest:
    """Return the VirtualService with the routes, not the one that keeps the cluster."""
    (found,) = [
        manifest["spec"]
        for manifest in of_kind(manifests, "VirtualService")
        if not manifest["metadata"]["name"].endswith("-cluster")
    ]
    return found
