"""The objects of an overlay, the chart or the command, and how a test finds one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from extproc.cli import main

Manifest = dict[str, Any]

KUBERNETES = "1.35"
"""The Kubernetes version of the schemas, which equals the version of kubectl."""
CORE = ("v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1")
"""The API versions of the objects that those schemas describe."""


def printed(
    config: Mapping[str, Any], gateway: str, folder: Path, *options: str
) -> list[Manifest]:
    """Return what ``extproc routes`` prints for a configuration and a kind of gateway."""
    path = folder / "extproc.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    command = ["routes", "--config", str(path), "--for", gateway, *options]
    output = io.StringIO()
    with redirect_stdout(output):
        assert main(command) == 0
    return list(yaml.safe_load_all(output.getvalue()))


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
