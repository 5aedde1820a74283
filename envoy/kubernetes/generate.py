"""Write the files that are derived from other files, or check that they are current.

    python envoy/kubernetes/generate.py            write
    python envoy/kubernetes/generate.py --check    list outdated files; status 1 if any

A kustomization may read only files below its own folder, so a file that two of them use
exists twice.
"""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

import sys
from collections.abc import Callable

from chart_readme import chart_readme
from gateway_policies import (
    chart_overflow,
    chart_patch_policy,
    envoy_patch_policy,
    istio_overflow,
)
from models_envoy import models_envoy
from older_envoy import older_envoy
from pod_envoy import (
    compose_envoy,
    compose_envoy_throughput,
    sidecar_envoy,
    sidecar_envoy_access_log,
    sidecar_envoy_throughput,
)
from sources import ENVOY
from yaml_text import indent

_RULE_HEAD = """\
# GENERATED from envoy/observability/rules.yml by envoy/kubernetes/generate.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: token-budget-router
spec:
"""

_STATE = """\
state:
  # The address is in EXTPROC_STATE_URL, since it may contain a password.
  store: redis
"""

_ACCESS_LOG = """\
feedback:
  # Envoy sends each response's usage to the router's own port: envoy/access_log.yaml.
  access_log: true
"""


def prometheus_rule() -> str:
    """Return the alerts as a resource of the Prometheus operator."""
    text = (ENVOY / "observability" / "rules.yml").read_text()
    return _RULE_HEAD + indent(text[text.index("groups:") :], 2)


def _router(base: str, *sections: str) -> Callable[[], str]:
    """Return a maker of the router's configuration `base` with more sections."""
    return lambda: (ENVOY / base).read_text() + "".join(sections)


_BASE, _COMPOSE = "kubernetes/base/extproc.yaml", "compose/extproc.yaml"

GENERATED: dict[str, Callable[[], str]] = {
    "envoy-1.37.yaml": older_envoy,
    "models.yaml": models_envoy,
    "kubernetes/overlays/istio/overflow.yaml": istio_overflow,
    "kubernetes/overlays/sidecar/envoy.yaml": sidecar_envoy,
    "observability/kubernetes/prometheusrule.yaml": prometheus_rule,
    "kubernetes/components/envoy-gateway-access-log/envoypatchpolicy.yaml": envoy_patch_policy,
    "kubernetes/components/envoy-gateway-access-log/extproc.yaml": _router(
        _BASE, _ACCESS_LOG
    ),
    "kubernetes/components/shared-state/extproc.yaml": _router(_BASE, _STATE),
    "kubernetes/components/sidecar-throughput/envoy.yaml": sidecar_envoy_throughput,
    "kubernetes/components/sidecar-throughput/extproc.yaml": _router(
        _BASE, _ACCESS_LOG
    ),
    "helm/token-budget-router/files/envoy-access-log.yaml": sidecar_envoy_access_log,
    "helm/token-budget-router/files/envoy-gateway-access-log.yaml": chart_patch_policy,
    "helm/token-budget-router/files/istio-overflow.yaml": chart_overflow,
    "helm/token-budget-router/README.md": chart_readme,
    "compose/envoy.yaml": compose_envoy,
    "compose/shared-state.yaml": _router(_COMPOSE, _STATE),
    "compose/throughput/envoy.yaml": compose_envoy_throughput,
    "compose/throughput/extproc.yaml": _router(_COMPOSE, _ACCESS_LOG),
    "compose/throughput/shared-state.yaml": _router(_COMPOSE, _ACCESS_LOG, _STATE),
}


def main() -> None:
    """Write the files, or check them with --check."""
    differing = []
    for name, make in GENERATED.items():
        path = ENVOY / name
        if "--check" not in sys.argv[1:]:
            path.write_text(make())
        elif not path.exists() or path.read_text() != make():
            differing.append(str(path))
    if differing:
        sys.exit(f"outdated; run {sys.argv[0]}: {', '.join(differing)}")


if __name__ == "__main__":
    main()
