"""Patches and policies of gateways, from Envoy's shipped configuration."""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

from typing import Any

import yaml
from sources import ENVOY, access_log_piece
from yaml_text import blocks, document, indent

from extproc.commands.istio_routes import overflow
from extproc.commands.placement import Placement
from extproc.demo.stack.envoy_config import load_config

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


def envoy_patch_policy() -> str:
    """Return the filters of access_log.yaml as patches for Envoy Gateway."""
    filters = access_log_piece("http_filters").split("\n- ")
    values = [each.removeprefix("- ").replace("\n  ", "\n") for each in filters]
    return _PATCH_HEAD + "".join(_PATCH + indent(value, 8) for value in values)


def chart_patch_policy() -> str:
    """Return the specifications of both objects for the chart, with the overlay's names."""
    folder = ENVOY / "kubernetes/components/envoy-gateway-access-log"
    objects = {
        "proxy": yaml.safe_load((folder / "envoyproxy.yaml").read_text()),
        "patches": yaml.safe_load(envoy_patch_policy()),
    }
    specs = {name: each["spec"] for name, each in objects.items()}
    return _CHART_PATCH_HEAD + document(specs)


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
    return _OVERFLOW_HEAD + blocks(_overflow_patches(at), 2)


def chart_overflow() -> str:
    """Return the values of those patches, without names, for the chart."""
    at = Placement("", "", "", "", "", ())
    cluster_patch, route_patch = _overflow_patches(at)
    cluster, route = cluster_patch["patch"]["value"], route_patch["patch"]["value"]
    del cluster["name"], cluster["cluster_type"]["typed_config"]["clusters"]
    del route["route"]["cluster"]
    values = {"cluster": cluster, "route": route}
    return _CHART_OVERFLOW_HEAD + document(values)


def _overflow_patches(at: Placement) -> list[Any]:
    shipped = load_config(ENVOY / "envoy.yaml")
    clusters = {each["name"]: each for each in shipped["static_resources"]["clusters"]}
    return list(overflow("short", "long", clusters["vllm_short"], at))
