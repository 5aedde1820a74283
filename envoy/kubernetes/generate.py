"""Write the files that are others with a few lines changed, or check that they are.

    python envoy/kubernetes/generate.py            write
    python envoy/kubernetes/generate.py --check    say which differ; status 1 if any

A kustomization may read only files below its folder, so what two of them need exists
twice.
"""

# ruff: noqa: E501 - lines of YAML, as long as the names in them

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ENVOY = Path(__file__).resolve().parents[1]

_SIDECAR_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py, for a pod in which Envoy
# and the router are neighbours. It differs in two places: the cluster `extproc` is a Unix
# socket, and a listener `stats` shows metrics and readiness, without the rest of the admin
# interface, to other pods.

"""

_STATS_LISTENER = """
  - name: stats
    address: {socket_address: {address: 0.0.0.0, port_value: 9902}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: stats
          route_config:
            virtual_hosts:
            - name: stats
              domains: ["*"]
              routes:
              - {match: {path: /stats/prometheus}, route: {cluster: admin}}
              - {match: {path: /ready}, route: {cluster: admin}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"""

_ADMIN_CLUSTER = """
  # Envoy's own admin interface, for the listener `stats`.
  - name: admin
    type: STATIC
    load_assignment:
      cluster_name: admin
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
"""

_RULE_HEAD = """\
# GENERATED from envoy/observability/rules.yml by envoy/kubernetes/generate.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: token-budget-router
spec:
"""

_STATE_TAIL = """\
state:
  # The address is in EXTPROC_STATE_URL, as it may hold a password.
  store: redis
"""


def sidecar_envoy() -> str:
    """Envoy's configuration beside the router, with a port for its metrics."""
    text = (ENVOY / "envoy.yaml").read_text()
    text = text[text.index("admin:") :]
    text = _replace(
        text,
        "  - name: extproc\n    type: STRICT_DNS\n    dns_lookup_family: V4_PREFERRED\n",
        "  - name: extproc\n    type: STATIC\n",
    )
    text = _replace(
        text,
        "{socket_address: {address: extproc, port_value: 9002}}",
        "{pipe: {path: /run/extproc/extproc.sock}}",
    )
    text = _replace(text, "\n  clusters:\n", f"{_STATS_LISTENER}\n  clusters:\n")
    return f"{_SIDECAR_HEAD}{text.rstrip()}\n{_ADMIN_CLUSTER}"


def prometheus_rule() -> str:
    """The alerts as the Prometheus operator has them."""
    text = (ENVOY / "observability" / "rules.yml").read_text()
    lines = text[text.index("groups:") :].splitlines()
    return _RULE_HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def shared_state_config() -> str:
    """The base's configuration, with a store."""
    return (ENVOY / "kubernetes/base/extproc.yaml").read_text() + _STATE_TAIL


GENERATED: dict[str, Callable[[], str]] = {
    "kubernetes/overlays/sidecar/envoy.yaml": sidecar_envoy,
    "observability/kubernetes/prometheusrule.yaml": prometheus_rule,
    "kubernetes/components/shared-state/extproc.yaml": shared_state_config,
}


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"envoy.yaml: expected once, to replace it: {old!r}")
    return text.replace(old, new)


def main() -> None:
    """Write or check."""
    differing = []
    for name, make in GENERATED.items():
        path = ENVOY / name
        if "--check" not in sys.argv[1:]:
            path.write_text(make())
        elif path.read_text() != make():
            differing.append(str(path))
    if differing:
        sys.exit(f"not current, run {sys.argv[0]}: {', '.join(differing)}")


if __name__ == "__main__":
    main()
