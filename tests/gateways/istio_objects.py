"""The objects that a cluster adds to the manifests, as Istio reads them from files.

These are the Gateway, and the address of each Service. Addresses are of this machine,
which a real API server would refuse.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..deploy.manifests import Manifest

NAMESPACE = "llm"
HERE = "127.0.0.1"
POD = "127.0.0.31"
"""Address of the gateway's pod, by which Istio finds its Service; nothing uses it."""
READ = {
    "AuthorizationPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "Gateway",
    "HTTPRoute",
    "InferencePool",
    "Service",
    "VirtualService",
}
"""Kinds of the manifests that Istio reads."""
_API = "gateway.networking.k8s.io"


@dataclass(frozen=True)
class Proxy:
    """The gateway's pod, which Istio identifies by namespace and labels."""

    namespace: str
    labels: Mapping[str, str]


def in_a_cluster(
    manifests: Sequence[Manifest], services: Mapping[str, int], port: int
) -> tuple[list[Manifest], Proxy]:
    """Return the manifests with what a cluster adds, and the gateway's pod.

    Args:
        manifests: the rendered objects, which are not modified.
        services: the local port of each Service; 0 for one without an endpoint.
        port: the port of the gateway's listener.
    """
    objects = [copy.deepcopy(item) for item in manifests if item["kind"] in READ]
    pools = {item["metadata"]["name"]: item for item in _of(objects, "InferencePool")}
    asked = {item["spec"]["endpointPickerRef"]["name"] for item in pools.values()}
    asked.add("token-budget-router")
    present = {item["metadata"]["name"]: item for item in _of(objects, "Service")}
    added = []
    for number, (name, local) in enumerate(services.items(), 1):
        if name not in present:
            port_of = _GRPC if name in asked else _HTTP
            added.append(_service(name, f"10.0.0.{number}", port_of))
        service = present.get(name) or added[-1]
        first = service["spec"]["ports"][0]
        added.append(_slice(name, first["name"], HERE, local))
        if name in pools:
            added.append(_slice(_shadow_service(name), "http-0", HERE, local))
    routes = [*_of(objects, "HTTPRoute")]
    for route in routes:
        _accept(route)
    gateway, proxy = _gateway_api(routes, port) if routes else _classic(objects, port)
    places = [
        _object("v1", "Namespace", each, "") for each in {NAMESPACE, proxy.namespace}
    ]
    return [*places, *added, *gateway, *objects], proxy


_HTTP = {"name": "http", "port": 8000, "appProtocol": "http"}
_GRPC = {"name": "grpc", "port": 9002, "appProtocol": "kubernetes.io/h2c"}


def _of(objects: Sequence[Manifest], kind: str) -> Iterator[Manifest]:
    return (item for item in objects if item["kind"] == kind)


def _object(
    api: str,
    kind: str,
    name: str,
    namespace: str = NAMESPACE,
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _service(
    name: str, address: str, port: Manifest, namespace: str = NAMESPACE
) -> Manifest:
    spec = {"clusterIP": address, "selector": {"workload": name}, "ports": [dict(port)]}
    return _object("v1", "Service", name, namespace, spec=spec)


def _slice(
    service: str, port: str, address: str, local: int, namespace: str = NAMESPACE
) -> Manifest:
    endpoint = {"addresses": [address], "conditions": {"ready": True}}
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{service}-1",
        namespace,
        {"kubernetes.io/service-name": service},
        addressType="IPv4",
        endpoints=[endpoint] if local else [],
        ports=[{"name": port, "port": local, "protocol": "TCP"}],
    )


def _shadow_service(pool: str) -> str:
    """Return the name of the Service that Istio makes for an InferencePool."""
    return f"{pool}-ip-{hashlib.sha256(pool.encode()).hexdigest()[:8]}"


def _accept(route: Manifest) -> None:
    """Write the status without which Istio ignores a route's InferencePools."""
    parents = [
        {
            "controllerName": "istio.io/gateway-controller",
            "conditions": [],
            "parentRef": {"group": _API, "kind": "Gateway"} | reference,
        }
        for reference in route["spec"]["parentRefs"]
    ]
    route["metadata"]["generation"] = 1
    route["status"] = {"parents": parents}


def _classic(objects: Sequence[Manifest], port: int) -> tuple[list[Manifest], Proxy]:
    """Return the Gateway of Istio's own API that the VirtualServices name."""
    virtual = [item["spec"] for item in _of(objects, "VirtualService")]
    (place,) = {each for spec in virtual for each in spec["gateways"]}
    namespace, _, name = place.partition("/")
    filters = [item["spec"] for item in _of(objects, "EnvoyFilter")]
    selector = filters[0]["workloadSelector"]["labels"]
    listener = {"number": port, "name": "http", "protocol": "HTTP"}
    spec = {
        "selector": selector,
        "servers": [{"port": listener, "bind": HERE, "hosts": ["*"]}],
    }
    api = "networking.istio.io/v1"
    gateway = _object(api, "Gateway", name, namespace, spec=spec)
    return [gateway], Proxy(namespace, selector)


def _gateway_api(routes: Sequence[Manifest], port: int) -> tuple[list[Manifest], Proxy]:
    """Return the Gateway that the HTTPRoutes name, with its pod and its Service."""
    (place,) = {
        (reference.get("namespace", route["metadata"]["namespace"]), reference["name"])
        for route in routes
        for reference in route["spec"]["parentRefs"]
    }
    namespace, name = place
    proxy = Proxy(namespace, {f"{_API}/gateway-name": name})
    listener = {
        "name": "http",
        "port": port,
        "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    gateway = {"gatewayClassName": "istio", "listeners": [listener]}
    controller = {"controllerName": "istio.io/gateway-controller"}
    service = f"{name}-istio"
    status = {
        "phase": "Running",
        "podIP": POD,
        "podIPs": [{"ip": POD}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    containers = {"containers": [{"name": "istio-proxy"}]}
    labels = {**proxy.labels, "workload": service}
    service_port = {"name": "http", "port": port, "targetPort": port}
    return [
        _object(f"{_API}/v1", "GatewayClass", "istio", "", spec=controller),
        _object(f"{_API}/v1", "Gateway", name, namespace, spec=gateway),
        _only_here(name, namespace, port),
        _object(
            "v1", "Pod", "gateway", namespace, labels, spec=containers, status=status
        ),
        _service(service, "10.0.1.1", service_port, namespace),
        _slice(service, "http", POD, port, namespace),
    ], proxy


def _only_here(gateway: str, namespace: str, port: int) -> Manifest:
    """Return a patch, since a Gateway of this API listens on every address."""
    target = {"group": _API, "kind": "Gateway", "name": gateway}
    address = {"socket_address": {"address": HERE, "port_value": port}}
    patch = {
        "applyTo": "LISTENER",
        "match": {"context": "GATEWAY"},
        "patch": {"operation": "MERGE", "value": {"address": address}},
    }
    return _object(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "only-here",
        namespace,
        spec={"targetRefs": [target], "configPatches": [patch]},
    )
