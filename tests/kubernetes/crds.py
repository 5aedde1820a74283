"""Custom resource definitions of the gateways, from their Go modules.

``go mod download`` fetches a module into Go's cache, which takes seconds the first time.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Definition = dict[str, Any]


class MissingError(Exception):
    """A module is not available; the message gives the reason."""


class Source(NamedTuple):
    """A Go module whose files define custom resources."""

    module: str
    path: str
    """File or folder below the module's root."""

    kinds: tuple[str, ...]
    """Kinds that the project's manifests use."""


SOURCES = (
    Source("sigs.k8s.io/gateway-api@v1.6.1", "config/crd/standard", ("HTTPRoute",)),
    Source(
        "sigs.k8s.io/gateway-api-inference-extension@v1.5.0",
        "config/crd/bases",
        ("InferencePool",),
    ),
    Source(
        "github.com/envoyproxy/gateway@v1.9.0",
        "charts/gateway-helm/charts/crds/crds/generated",
        (
            *("Backend", "BackendTrafficPolicy", "ClientTrafficPolicy"),
            *("EnvoyExtensionPolicy", "EnvoyPatchPolicy", "EnvoyProxy"),
            "HTTPRouteFilter",
        ),
    ),
    Source(
        # Istio tags no version of this module; the commit is of 1.31.
        "istio.io/istio@v0.0.0-20260827124520-eed52ebb66ad",
        "manifests/charts/base/files/crd-all.gen.yaml",
        ("AuthorizationPolicy", "DestinationRule", "EnvoyFilter", "VirtualService"),
    ),
    Source(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd",
        ("PrometheusRule", "ServiceMonitor"),
    ),
)

GKE = {
    "GCPBackendPolicy": "gcpbackendpolicies",
    "GCPRoutingExtension": "gcproutingextensions",
    "HealthCheckPolicy": "healthcheckpolicies",
}
"""GKE's kinds, which have no public definition, with their plural names."""


@functools.cache
def definitions() -> dict[str, Definition]:
    """Return the definition of each kind that has a public one.

    Raises:
        MissingError: Go is not installed, or cannot download a module.
    """
    found: dict[str, Definition] = {}
    for source in SOURCES:
        path = _download(source.module) / source.path
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        texts = [text for file in files for text in file.read_text().split("\n---\n")]
        for kind in source.kinds:
            names = re.compile(rf"^    kind: {kind}$", re.MULTILINE)
            (text,) = [text for text in texts if names.search(text)]
            found[kind] = yaml.load(text, _LOADER)
    return found


def stubs() -> dict[str, Definition]:
    """Return a definition that accepts any field for each of GKE's kinds."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    group = "networking.gke.io"
    return {
        kind: {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural},
                "versions": [version],
            },
        }
        for kind, plural in GKE.items()
    }


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C is eight times faster; the definitions have 3 MB."""


def _download(module: str) -> Path:
    go = shutil.which("go")
    if go is None:
        raise MissingError(f"needs Go to download {module}")
    # Outside of any module, whose version of Go would apply.
    done = subprocess.run(
        [go, "mod", "download", "-json", module],
        cwd=tempfile.gettempdir(),
        env={**os.environ, "GO111MODULE": "on"},
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "Dir" not in answer:
        reason = answer.get("Error") or done.stderr
        raise MissingError(f"{module}: {reason.strip()[-300:]}")
    return Path(answer["Dir"])
