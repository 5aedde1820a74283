"""Envoy's configuration next to the router: in its pod, or in compose."""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

from sources import access_log_piece, envoy_yaml
from yaml_text import indent, replace

WORKERS = 4
"""Number of workers in the generated files for several workers."""

_SIDECAR_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py, for a pod with Envoy and
# the router. Two things differ: the cluster `extproc` is a Unix socket, and the listener
# `stats` exposes metrics and readiness to other pods, without the rest of the admin
# interface.

"""

_SIDECAR_ACCESS_LOG_HEAD = """\
# GENERATED from overlays/sidecar/envoy.yaml and envoy/access_log.yaml by
# envoy/kubernetes/generate.py.

"""

_COMPOSE_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py. One thing differs: the
# listener `stats` exposes metrics and readiness to the other containers, without the rest
# of the admin interface.

"""

_THROUGHPUT_HEAD = """\
# GENERATED from {sources} by envoy/kubernetes/generate.py:
# {workers} workers of the router instead of one, which learn from Envoy's access log.

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

_SOCKET = "/run/extproc/extproc.sock"


def sidecar_envoy() -> str:
    """Return Envoy's configuration for a sidecar, with a port for its metrics."""
    return _SIDECAR_HEAD + _sidecar()


def sidecar_envoy_access_log() -> str:
    """Return the sidecar's configuration with the access log; the chart adds workers."""
    return _SIDECAR_ACCESS_LOG_HEAD + _with_access_log(_sidecar())


def sidecar_envoy_throughput() -> str:
    """Return the sidecar's configuration with the access log and several workers."""
    socket = "{{pipe: {{path: {path}}}}}"
    sockets = [socket.format(path=f"{_SOCKET}.{i}") for i in range(WORKERS)]
    sources = "overlays/sidecar/envoy.yaml and envoy/access_log.yaml"
    text = _with_access_log(_sidecar())
    return _throughput_head(sources) + _with_endpoints(
        text, socket.format(path=_SOCKET), sockets
    )


def compose_envoy() -> str:
    """Return envoy.yaml with a port for Envoy's metrics."""
    return _COMPOSE_HEAD + _with_stats(envoy_yaml())


def compose_envoy_throughput() -> str:
    """Return compose's configuration with the access log and several workers."""
    address = "{{socket_address: {{address: extproc, port_value: {port}}}}}"
    ports = [address.format(port=9002 + i) for i in range(WORKERS)]
    sources = "envoy/compose/envoy.yaml and envoy/access_log.yaml"
    text = _with_access_log(_with_stats(envoy_yaml()))
    return _throughput_head(sources) + _with_endpoints(text, ports[0], ports)


def _sidecar() -> str:
    text = envoy_yaml()
    text = replace(
        text,
        "  - name: extproc\n    type: STRICT_DNS\n    dns_lookup_family: V4_PREFERRED\n",
        "  - name: extproc\n    type: STATIC\n",
    )
    text = replace(
        text,
        "{socket_address: {address: extproc, port_value: 9002}}",
        f"{{pipe: {{path: {_SOCKET}}}}}",
    )
    return _with_stats(text)


def _with_stats(text: str) -> str:
    """Add the listener `stats` and its cluster."""
    text = replace(text, "\n  clusters:\n", f"{_STATS_LISTENER}\n  clusters:\n")
    return f"{text.rstrip()}\n{_ADMIN_CLUSTER}"


def _throughput_head(sources: str) -> str:
    return _THROUGHPUT_HEAD.format(sources=sources, workers=WORKERS)


def _with_endpoints(text: str, address: str, addresses: list[str]) -> str:
    line = "        - endpoint: {{address: {}}}\n"
    lines = "".join(line.format(each) for each in addresses)
    return replace(text, line.format(address), lines)


def _with_access_log(text: str) -> str:
    """Insert the pieces of access_log.yaml at the places in its comments."""
    text = replace(
        text,
        "                receiving_namespaces: {untyped: [extproc.token_budget]}\n",
        indent(access_log_piece("metadata_options"), 14),
    )
    manager_ends = "          - name: envoy.filters.http.router\n"
    before, _, after = text.partition(manager_ends)
    text = before + indent(access_log_piece("http_filters"), 10) + manager_ends + after
    routes = "          route_config:\n            name: llm\n"
    return replace(text, routes, indent(access_log_piece("access_log"), 10) + routes)
