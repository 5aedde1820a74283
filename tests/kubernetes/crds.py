"""Custom resource definitions of the gateways, from their Go modules.

``go mod download`` fetches a module into Go's cache, which takes seconds the first time.
"""

from __future__ import annotations

import contextlib
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

AI_GATEWAY = Source(
    "github.com/envoyproxy/ai-gateway@v1.1.0",
    "manifests/charts/ai-gateway-crds-helm/templates",
    ("AIGatewayRoute", "AIServiceBackend"),
)
"""Not every Go proxy serves this module; $EXTPROC_AI_GATEWAY names a checkout instead."""

WITHOUT_DEFINITION = {
    "AIGatewayRoute": "aigatewayroutes.aigateway.envoyproxy.io/v1beta1",
    "AIServiceBackend": "aiservicebackends.aigateway.envoyproxy.io/v1beta1",
    "GCPBackendPolicy": "gcpbackendpolicies.networking.gke.io/v1",
    "GCPRoutingExtension": "gcproutingextensions.networking.gke.io/v1",
    "HealthCheckPolicy": "healthcheckpolicies.networking.gke.io/v1",
}
"""Kinds that may lack a definition, with plural, group and version: GKE's is not public."""


@functools.cache
def definitions() -> dict[str, Definition]:
    """Return the definition of each kind that has a public one.

    Raises:
        MissingError: Go is not installed, or cannot download a module.
    """
    found: dict[str, Definition] = {}
    for source in SOURCES:
        found |= _read(source, _download(source.module))
    checkout = os.environ.get("EXTPROC_AI_GATEWAY")
    with contextlib.suppress(MissingError):
        folder = Path(checkout) if checkout else _download(AI_GATEWAY.module)
        found |= _read(AI_GATEWAY, folder)
    return found


def stubs() -> dict[str, Definition]:
    """Return a definition that accepts any field for each kind without one."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    made = {}
    for kind, name in WITHOUT_DEFINITION.items():
        name, _, version = name.partition("/")
        plural, _, group = name.partition(".")
        made[kind] = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural},
                "versions": [
                    {
                        "name": version,
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        }
    return made


def _read(source: Source, folder: Path) -> dict[str, Definition]:
    path = folder / source.path
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    texts = [text for file in files for text in file.read_text().split("\n---\n")]
    found = {}
    for kind in source.kinds:
        names = re.compile(rf"^    kind: {kind}$", re.MULTILINE)
        (text,) = [text for text in texts if names.search(text)]
        found[kind] = yaml.load(text, _LOADER)
    return found


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
