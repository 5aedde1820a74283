"""Write the files that are derived from other files, or check that they are current.

    python envoy/kubernetes/generate.py            write
    python envoy/kubernetes/generate.py --check    list outdated files; status 1 if any

A kustomization may read only files below its own folder, so a file that two of them use
exists twice.
"""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from chart_readme import chart_readme

from extproc.commands.envoy_routes import (
    cluster,
    health_answer,
    models_answer,
    routes,
)
from extproc.commands.gateway_fleet import Fleet, fleet_of
from extproc.commands.istio_routes import overflow
from extproc.commands.model_filter import model_source
from extproc.commands.placement import Placement
from extproc.config import load_config as load_router_config
from extproc.demo.stack.envoy_config import load_config

ENVOY = Path(__file__).resolve().parents[1]

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

_OLDER_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py, for Envoy 1.37 to 1.39.
# The retry of an overflow differs: the route `short` leads to an aggregate cluster of the
# short pool, then the long one, and the retry takes the second. Envoy reports the aggregate
# as the cluster that answered, so the endpoints' metadata name the pool.

"""

_PLUGIN_BEGIN = "                  # The first attempt goes to the short pool,"
_PLUGIN_END = "                  retry_policy:\n                    # Retry if vLLM"
_LUA_BEGIN = "        # Upstream filters see each attempt before the retry policy does."
_LUA_END = "    load_assignment:\n      cluster_name: vllm_short"

_AGGREGATE_ROUTE = """\
                  # The first attempt goes to the short pool, a retry to the long pool
                  # (`retry_priority`, below).
                  cluster: vllm_short_then_long
"""

_RETRY_PRIORITY = """\
                    num_retries: 1
                    retry_priority:
                      name: envoy.retry_priorities.previous_priorities
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                        update_frequency: 1
                    retry_back_off"""

_AGGREGATE_CLUSTER = """
  # The short pool, then the long one for retries or if no server of the short pool is
  # healthy. For settings that apply before a server is chosen (upstream filters, concurrent
  # retries), this cluster's values count, not those of its two members.
  - name: vllm_short_then_long
    connect_timeout: 1s
    lb_policy: CLUSTER_PROVIDED
    cluster_type:
      name: envoy.clusters.aggregate
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig
        clusters: [vllm_short, vllm_long]
    circuit_breakers:
      thresholds:
      - {max_connections: 4096, max_pending_requests: 4096, max_requests: 4096, max_retries: 256}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {idle_timeout: 4s}
        explicit_http_config: {http_protocol_options: {}}
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

_COMPOSE_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py. One thing differs: the
# listener `stats` exposes metrics and readiness to the other containers, without the rest
# of the admin interface.

"""

_THROUGHPUT_HEAD = """\
# GENERATED from {sources} by envoy/kubernetes/generate.py:
# {workers} workers of the router instead of one, which learn from Envoy's access log.

"""

WORKERS = 4
"""Number of workers in the generated files for several workers."""

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

_MODELS_HEAD = """\
# GENERATED from envoy/envoy.yaml and envoy/models-router.yaml by
# envoy/kubernetes/generate.py: a complete configuration of Envoy 1.40 for three models and
# five pools. It differs from envoy.yaml as follows:
#
#   1. The router also sets x-llm-model: the base model, also for its adapters.
#   2. `x-llm-pool: NAME` goes to a small pool, with the retry on its own model's largest
#      pool; `x-llm-model: NAME` goes to that model's largest pool.
#   3. If the router named no model (it is down, or did not read the body), a Lua filter
#      after it reads the name from the body and clears the route cache. A request without
#      a decision thus goes to its own model's largest pool, never to another model's.
#   4. Envoy answers 404 if the model is not in the fleet, 400 if the request names no
#      model, and 503 if it cannot read the body while the router is down (compressed, or
#      above `request_body_buffer_limit`).

"""

_INFRA_BEGIN = "              # Requests about the server, not for the model"
_INFRA_END = "              - name: administration\n"
_SHORT_BEGIN = "              - name: short\n"
_ROUTES_END = "          http_filters:\n"
_ROUTER_FILTER = "          - name: envoy.filters.http.router\n"
_SHORT_CLUSTER = "  # vLLM with a small --max-model-len"
_LONG_CLUSTER = "  # vLLM with the model's full window."

_MODEL_FILTER_HEAD = """\
          # Name the model if the router did not. The filter buffers only the bodies of such
          # requests; all others pass at once.
          - name: envoy.filters.http.lua
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
              default_source_code:
                inline_string: |
"""

_NO_MODEL_CLUSTER = """\
  # The cluster of a request until its model is known; it has no server.
  - name: no_model
    type: STATIC
    connect_timeout: 1s
"""

_OVERFLOW_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py. If a server of the short
# pool refuses a request as too long, or its window cut the answer, the gateway retries the
# request on the long pool. An aggregate cluster does this, as in envoy/envoy-1.37.yaml,
# since Istio does not know `priority_group`. Istio's metrics of these requests have the
# aggregate's name instead of a Service's.
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: token-budget-router-llm-overflow
  # The namespace of the gateway's pods.
  namespace: istio-system
spec:
  workloadSelector:
    labels:
      istio: ingressgateway
  configPatches:
"""

_CHART_OVERFLOW_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py: what the gateway needs to
# retry an overflow. The template adds the names and the clusters' members.
"""

_PATCH_HEAD = """\
# GENERATED from envoy/access_log.yaml by envoy/kubernetes/generate.py: its filters, which
# read a response's token counts, in front of the router filter.
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata:
  name: token-budget-router-usage
  labels:
    app.kubernetes.io/name: token-budget-router
    app.kubernetes.io/part-of: llm-gateway
spec:
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm-gateway}
  type: JSONPatch
  jsonPatches:
"""

_CHART_PATCH_HEAD = """\
# GENERATED from kubernetes/components/envoy-gateway-access-log by
# envoy/kubernetes/generate.py. The template replaces the names.
"""

_PATCH = """\
  - type: type.googleapis.com/envoy.config.listener.v3.Listener
    # Namespace, Gateway and listener.
    name: llm/llm-gateway/http
    operation:
      op: add
      jsonPath: ..http_filters[?(@.name=='envoy.filters.http.router')]
      value:
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
  # The address is in EXTPROC_STATE_URL, since it may contain a password.
  store: redis
"""


_ACCESS_LOG_TAIL = """\
feedback:
  # Envoy sends each response's usage to the router's own port: envoy/access_log.yaml.
  access_log: true
"""

_SOCKET = "/run/extproc/extproc.sock"


def sidecar_envoy() -> str:
    """Return Envoy's configuration for a sidecar, with a port for its metrics."""
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
        f"{{pipe: {{path: {_SOCKET}}}}}",
    )
    return _SIDECAR_HEAD + _with_stats(text)


def sidecar_envoy_access_log() -> str:
    """Return the sidecar's configuration with the access log; the chart adds workers."""
    text = sidecar_envoy().removeprefix(_SIDECAR_HEAD)
    return _SIDECAR_ACCESS_LOG_HEAD + _with_access_log(text)


def sidecar_envoy_throughput() -> str:
    """Return the sidecar's configuration with the access log and several workers."""
    text = _with_access_log(sidecar_envoy())
    sockets = [f"{{pipe: {{path: {_SOCKET}.{i}}}}}" for i in range(WORKERS)]
    sources = "overlays/sidecar/envoy.yaml and envoy/access_log.yaml"
    return _throughput_head(sources) + _with_endpoints(
        text.removeprefix(_SIDECAR_HEAD), f"{{pipe: {{path: {_SOCKET}}}}}", sockets
    )


def compose_envoy() -> str:
    """Return envoy.yaml with a port for Envoy's metrics."""
    text = (ENVOY / "envoy.yaml").read_text()
    return _COMPOSE_HEAD + _with_stats(text[text.index("admin:") :])


def compose_envoy_throughput() -> str:
    """Return compose's configuration with the access log and several workers."""
    text = _with_access_log(compose_envoy().removeprefix(_COMPOSE_HEAD))
    address = "{{socket_address: {{address: extproc, port_value: {port}}}}}"
    ports = [address.format(port=9002 + i) for i in range(WORKERS)]
    sources = "envoy/compose/envoy.yaml and envoy/access_log.yaml"
    return _throughput_head(sources) + _with_endpoints(text, ports[0], ports)


def _with_stats(text: str) -> str:
    """Add the listener `stats` and its cluster."""
    text = _replace(text, "\n  clusters:\n", f"{_STATS_LISTENER}\n  clusters:\n")
    return f"{text.rstrip()}\n{_ADMIN_CLUSTER}"


def _throughput_head(sources: str) -> str:
    return _THROUGHPUT_HEAD.format(sources=sources, workers=WORKERS)


def _with_endpoints(text: str, address: str, addresses: list[str]) -> str:
    line = "        - endpoint: {{address: {}}}\n"
    lines = "".join(line.format(each) for each in addresses)
    return _replace(text, line.format(address), lines)


def _with_access_log(text: str) -> str:
    """Insert the pieces of access_log.yaml at the places in its comments."""
    pieces = (ENVOY / "access_log.yaml").read_text()
    metadata = _piece(pieces, "metadata_options:\n", "\n")
    filters = _piece(pieces, "http_filters:\n", "\n\n")
    logger = _piece(pieces, "access_log:\n", None)
    text = _replace(
        text,
        "                receiving_namespaces: {untyped: [extproc.token_budget]}\n",
        _indent(metadata, 14),
    )
    manager_ends = "          - name: envoy.filters.http.router\n"
    before, _, after = text.partition(manager_ends)
    text = before + _indent(filters, 10) + manager_ends + after
    routes = "          route_config:\n            name: llm\n"
    return _replace(text, routes, _indent(logger, 10) + routes)


def _piece(text: str, begin: str, end: str | None) -> str:
    start = text.index(f"\n{begin}") + 1 + len(begin)
    stop = len(text) if end is None else text.index(end, start)
    return text[start:stop].rstrip("\n") + "\n"


def _indent(text: str, columns: int) -> str:
    return "".join(
        f"{' ' * columns}{line}".rstrip() + "\n" for line in text.splitlines()
    )


def older_envoy() -> str:
    """Return Envoy's configuration without `priority_group`, which needs 1.40."""
    text = (ENVOY / "envoy.yaml").read_text()
    text = text[text.index("admin:") :]
    _, text = _cut(text, _PLUGIN_BEGIN, _PLUGIN_END, _AGGREGATE_ROUTE)
    text = _replace(
        text,
        "                    num_retries: 1\n"
        "                    refresh_cluster_on_retry: true\n"
        "                    retry_back_off",
        _RETRY_PRIORITY,
    )
    lua, text = _cut(text, _LUA_BEGIN, _LUA_END, "")
    for name in ("short", "long"):
        address = f"{{address: vllm-{name}, port_value: 8000}}}}}}"
        metadata = f"{{filter_metadata: {{llm: {{cluster: vllm_{name}}}}}}}"
        text = _replace(text, address, f"{address}\n          metadata: {metadata}")
    text = text.replace("%UPSTREAM_CLUSTER%", "%UPSTREAM_METADATA(llm:cluster)%")
    return f"{_OLDER_HEAD}{text.rstrip()}\n{_AGGREGATE_CLUSTER}{lua}"


def models_envoy() -> str:
    """Return Envoy's configuration for the fleet of ``models-router.yaml``."""
    fleet = fleet_of(load_router_config((ENVOY / "models-router.yaml").read_text(), {}))
    text = (ENVOY / "envoy.yaml").read_text()
    text = text[text.index("admin:") :]
    text = _replace(
        text,
        "              - remove: x-llm-budget\n",
        "              - remove: x-llm-budget\n              - remove: x-llm-model\n",
    )
    answers = _blocks([models_answer(fleet), health_answer()], 14)
    _, text = _cut(text, _INFRA_BEGIN, _INFRA_END, answers)
    _, text = _cut(text, _SHORT_BEGIN, _ROUTES_END, _blocks(routes(fleet), 14))
    text = _replace(text, _ROUTER_FILTER, _model_filter(fleet) + _ROUTER_FILTER)
    small, text = _cut(text, _SHORT_CLUSTER, _LONG_CLUSTER, "")
    large, text = _cut(text + "\n", _LONG_CLUSTER, "\n\n", "")
    clusters = [_NO_MODEL_CLUSTER]
    for model in fleet.models:
        for pool in model.pools:
            last = pool == model.pools[-1]
            piece = (large if last else small).split("\n", 1)[1]
            was = "long" if last else "short"
            piece = piece.replace(f"vllm_{was}", cluster(pool))
            clusters.append(piece.replace(f"vllm-{was}", f"vllm-{pool}"))
    return (
        _MODELS_HEAD
        + text.rstrip()
        + "\n\n"
        + "\n".join(piece.rstrip() + "\n" for piece in clusters)
    )


def _blocks(items: Iterable[object], columns: int) -> str:
    return _indent(_document(list(items)), columns)


def _document(value: object) -> str:
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, width=1000, default_flow_style=None
    )


class _Dumper(yaml.SafeDumper):
    """Write a text of several lines as a block."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _model_filter(fleet: Fleet) -> str:
    source = _indent(model_source(fleet, fleet.last_route), 18)
    return _MODEL_FILTER_HEAD + source


def prometheus_rule() -> str:
    """Return the alerts as a resource of the Prometheus operator."""
    text = (ENVOY / "observability" / "rules.yml").read_text()
    lines = text[text.index("groups:") :].splitlines()
    return _RULE_HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def envoy_patch_policy() -> str:
    """Return the filters of access_log.yaml as patches for Envoy Gateway."""
    pieces = (ENVOY / "access_log.yaml").read_text()
    filters = _piece(pieces, "http_filters:\n", "\n\n").split("\n- ")
    values = [each.removeprefix("- ").replace("\n  ", "\n") for each in filters]
    return _PATCH_HEAD + "".join(_PATCH + _indent(value, 8) for value in values)


def chart_patch_policy() -> str:
    """Return the specifications of both objects for the chart, with the overlay's names."""
    folder = ENVOY / "kubernetes/components/envoy-gateway-access-log"
    objects = {
        "proxy": yaml.safe_load((folder / "envoyproxy.yaml").read_text()),
        "patches": yaml.safe_load(envoy_patch_policy()),
    }
    specs = {name: each["spec"] for name, each in objects.items()}
    return _CHART_PATCH_HEAD + _document(specs)


def istio_overflow() -> str:
    """Return the patches that retry an overflow of the short pool, for Istio."""
    at = Placement(
        name="token-budget-router",
        namespace="llm",
        gateway="llm-gateway",
        gateway_namespace="istio-system",
        listener="http",
        hosts=(),
    )
    return _OVERFLOW_HEAD + _blocks(_overflow_patches(at), 2)


def chart_overflow() -> str:
    """Return the values of those patches, without names, for the chart."""
    at = Placement("", "", "", "", "", ())
    cluster_patch, route_patch = _overflow_patches(at)
    cluster, route = cluster_patch["patch"]["value"], route_patch["patch"]["value"]
    del cluster["name"], cluster["cluster_type"]["typed_config"]["clusters"]
    del route["route"]["cluster"]
    values = {"cluster": cluster, "route": route}
    return _CHART_OVERFLOW_HEAD + _document(values)


def _overflow_patches(at: Placement) -> list[Any]:
    shipped = load_config(ENVOY / "envoy.yaml")
    clusters = {each["name"]: each for each in shipped["static_resources"]["clusters"]}
    return list(overflow("short", "long", clusters["vllm_short"], at))


def access_log_config() -> str:
    """Return the base's configuration with feedback from Envoy's access log."""
    return (ENVOY / "kubernetes/base/extproc.yaml").read_text() + _ACCESS_LOG_TAIL


def compose_shared_state_config() -> str:
    """Return compose's configuration with a store."""
    return (ENVOY / "compose/extproc.yaml").read_text() + _STATE_TAIL


def compose_throughput_config() -> str:
    """Return compose's configuration with feedback from Envoy's access log."""
    return (ENVOY / "compose/extproc.yaml").read_text() + _ACCESS_LOG_TAIL


def compose_throughput_shared_state_config() -> str:
    """Return compose's configuration with a store and feedback from the access log."""
    return compose_throughput_config() + _STATE_TAIL


def shared_state_config() -> str:
    """Return the base's configuration with a store."""
    return (ENVOY / "kubernetes/base/extproc.yaml").read_text() + _STATE_TAIL


GENERATED: dict[str, Callable[[], str]] = {
    "envoy-1.37.yaml": older_envoy,
    "models.yaml": models_envoy,
    "kubernetes/overlays/istio/overflow.yaml": istio_overflow,
    "kubernetes/overlays/sidecar/envoy.yaml": sidecar_envoy,
    "observability/kubernetes/prometheusrule.yaml": prometheus_rule,
    "kubernetes/components/envoy-gateway-access-log/envoypatchpolicy.yaml": envoy_patch_policy,
    "kubernetes/components/envoy-gateway-access-log/extproc.yaml": access_log_config,
    "kubernetes/components/shared-state/extproc.yaml": shared_state_config,
    "kubernetes/components/sidecar-throughput/envoy.yaml": sidecar_envoy_throughput,
    "kubernetes/components/sidecar-throughput/extproc.yaml": access_log_config,
    "helm/token-budget-router/files/envoy-access-log.yaml": sidecar_envoy_access_log,
    "helm/token-budget-router/files/envoy-gateway-access-log.yaml": chart_patch_policy,
    "helm/token-budget-router/files/istio-overflow.yaml": chart_overflow,
    "helm/token-budget-router/README.md": chart_readme,
    "compose/envoy.yaml": compose_envoy,
    "compose/shared-state.yaml": compose_shared_state_config,
    "compose/throughput/envoy.yaml": compose_envoy_throughput,
    "compose/throughput/extproc.yaml": compose_throughput_config,
    "compose/throughput/shared-state.yaml": compose_throughput_shared_state_config,
}


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"envoy.yaml: {old!r}; expected exactly once")
    return text.replace(old, new)


def _cut(text: str, begin: str, end: str, new: str) -> tuple[str, str]:
    """Replace the piece from `begin` to `end`; return it and the new text."""
    before, found, rest = text.partition(begin)
    piece, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"envoy.yaml: expected {begin!r}, then {end!r}")
    return begin + piece, before + new + end + after


def main() -> None:
    """Write the files, or check them with --check."""
    differing = []
    for name, make in GENERATED.items():
        path = ENVOY / name
        if "--check" not in sys.argv[1:]:
            path.write_text(make())
        elif path.read_text() != make():
            differing.append(str(path))
    if differing:
        sys.exit(f"outdated; run {sys.argv[0]}: {', '.join(differing)}")


if __name__ == "__main__":
    main()
