"""The Helm chart's README: how to install it, and a table of its values."""

# ruff: noqa: E501 - lines of Markdown

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "helm" / "token-budget-router"

_HEAD = """\
# token-budget-router, the Helm chart

The chart installs the router as a Deployment, and the routes and filters of the gateway that calls it. These are the objects of `envoy/kubernetes`, whose README compares the gateways.

No registry has the image. From a checkout, with your own registry:

    docker build -f extproc/Dockerfile --target server -t REGISTRY/token-budget-router:0.1.0 .
    docker push REGISTRY/token-budget-router:0.1.0
    helm install token-budget-router envoy/helm/token-budget-router -n llm --create-namespace \\
      --set image.repository=REGISTRY/token-budget-router --set gateway.type=sidecar
    helm test -n llm token-budget-router

On one machine use `kind load docker-image` or `minikube image load` instead of the push.

- **Upgrade**: `helm upgrade`. Kubernetes replaces one pod at a time; requests whose router is down take the default route. A change of `config` takes effect within a minute without a restart, except for `server`, `state`, `api`, `recording` and `otel`: these change `checksum/restart`, which restarts the pods. `helm rollback` undoes either change.
- **OpenShift**: `--set podSecurityContext.runAsUser=null --set podSecurityContext.runAsGroup=null --set podSecurityContext.fsGroup=null`, and `networkPolicy.dns` with port 5353 and the namespace `openshift-dns`.
- **Istio injection** is off for the router's pods, since the network policy blocks the injected proxy's connection to istiod. To inject it, set `podLabels."sidecar\\.istio\\.io/inject"="true"` and allow port 15012 in `networkPolicy.egress`.
- **Fixed replicas or KEDA**: set `autoscaling.enabled=false`, and for a fixed number `replicas`.

## Values

GENERATED from values.yaml and values.schema.json by envoy/kubernetes/generate.py.

| value | default | |
|---|---|---|
"""


def chart_readme() -> str:
    """Return the chart's README: its values, with defaults and descriptions."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = _value_rows("", schema["properties"], defaults)
    return _HEAD + "".join(f"{row}\n" for row in rows)


def _value_rows(
    prefix: str, properties: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[str]:
    for name, schema in properties.items():
        if "description" in schema:
            default = json.dumps(defaults[name]).replace("|", "\\|")
            shown = f"`{default}`" if len(default) < 60 else "see values.yaml"
            yield f"| `{prefix}{name}` | {shown} | {schema['description']} |"
        elif "properties" in schema:
            yield from _value_rows(
                f"{prefix}{name}.", schema["properties"], defaults[name]
            )
