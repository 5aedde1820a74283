"""The objects that Istio's ingress gateway needs for a fleet of models.

The objects are a VirtualService with routes by ``x-llm-pool`` and ``x-llm-model``, and
an EnvoyFilter with the router's filter, the filter that sets the model if the router
did not, and the retries of overflows. Filters and clusters are the same as in the
shipped ``envoy.yaml``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

from extproc.commands.gateway_fleet import (
    ADAPTERS,
    BUFFER_LIMIT_BYTES,
    FORBIDDEN,
    MODEL_HEADER,
    POOL_HEADER,
    REFUSALS,
    RETRY_ON,
    Fleet,
    Json,
)
from extproc.commands.model_filter import model_filter
from extproc.commands.placement import Placement, dns_label, service_of
from extproc.demo.stack.envoy_config import ext_proc_filter, find_config, load_config

HEAD = """\
# Istio 1.31 with an ingress gateway. Set: the labels of the gateway's pods in the
# EnvoyFilter (istio: ingressgateway).
"""

_TYPES = "type.googleapis.com/envoy"
_MANAGER = "envoy.filters.network.http_connection_manager"
_OPTIONS = "typed_extension_protocol_options"


def istio(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield the objects."""
    rules = list(_rules(fleet, at))
    yield _virtual_service(
        at.name, at.hosts or ["*"], [*_answers(fleet, at), *rules], at
    )
    # A gateway may have only the clusters that its routes name
    # (PILOT_FILTER_GATEWAY_CLUSTER_CONFIG), so this route keeps the router's cluster.
    kept = {"route": [_destination(at.router, at.router_port, at)]}
    yield _virtual_service(f"{at.name}-router", [f"{at.name}.invalid"], [kept], at)
    yield _envoy_filter(fleet, at, [rule["name"] for rule in rules])
    yield _router_rule(at)
    for model in fleet.models:
        for pool in model.pools:
            name = dns_label(f"{at.name}-{pool}")
            limits = {"http1MaxPendingRequests": 4096, "idleTimeout": "4s"}
            yield _destination_rule(name, service_of(pool), {"http": limits}, at)


def _rules(fleet: Fleet, at: Placement) -> Iterator[Json]:
    for model in fleet.models:
        headers = {MODEL_HEADER: model.name} if model.name else {}
        for pool in model.pools[:-1]:
            yield _rule(pool, pool, {POOL_HEADER: pool} | headers, at)
        if model.name:
            yield _rule(model.pools[-1], model.pools[-1], headers, at)
    if fleet.default_pool is not None:
        yield _rule(fleet.last_route, fleet.default_pool, {}, at)
        return
    for refusal in REFUSALS:
        value = {"exact": refusal.model} if refusal.model else {"regex": ".+"}
        match = {"uri": _prefix(at), "headers": {MODEL_HEADER: value}}
        yield _direct(refusal.name, match, refusal.status, refusal.body, at)
    # This route matches every request whose model is not yet known. Istio makes no
    # cluster for an unknown host, so requests that stay on this route get a 503.
    unknown = {"host": f"{at.name}-no-model.invalid", "port": {"number": at.pool_port}}
    yield {
        "name": _route_name(fleet.last_route, at),
        "match": [{"uri": _prefix(at)}],
        "route": [{"destination": unknown}],
    }


def _answers(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield the routes whose requests Envoy itself answers, without router or pool."""
    match: Json = {"uri": {"regex": ADAPTERS}}
    yield _direct("adapters", match, 403, FORBIDDEN, at)
    if fleet.named:
        path = {"exact": f"{at.path_prefix}/models"}
        match = {"uri": path, "method": {"exact": "GET"}}
        yield _direct("models", match, 200, fleet.models_list, at)


def _rule(name: str, pool: str, headers: Mapping[str, str], at: Placement) -> Json:
    match: Json = {"uri": _prefix(at)}
    if headers:
        match["headers"] = {key: {"exact": value} for key, value in headers.items()}
    return {
        "name": _route_name(name, at),
        "match": [match],
        "route": [_destination(service_of(pool), at.pool_port, at)],
        "retries": {"attempts": 1, "retryOn": RETRY_ON},
    }


def _direct(name: str, match: Json, status: int, body: str, at: Placement) -> Json:
    return {
        "name": _route_name(name, at),
        "match": [match],
        "directResponse": {"status": status, "body": {"string": body}},
        "headers": {"response": {"set": {"content-type": "application/json"}}},
    }


def _prefix(at: Placement) -> Json:
    return {"prefix": f"{at.path_prefix}/"}


def _route_name(name: str, at: Placement) -> str:
    """Return a name that no other team uses: patches match names on every host."""
    return f"{at.namespace}.{at.name}.{name}"


def _destination(service: str, port: int, at: Placement) -> Json:
    return {"destination": {"host": at.host(service), "port": {"number": port}}}


def _cluster(service: str, port: int, at: Placement) -> str:
    """Return the name that Istio gives the cluster of a Service."""
    return f"outbound|{port}||{at.host(service)}"


def _envoy_filter(fleet: Fleet, at: Placement, routes: Sequence[str]) -> Json:
    shipped = load_config(find_config())
    clusters = {each["name"]: each for each in shipped["static_resources"]["clusters"]}
    patches = [
        _insert(_router_filter(shipped, at)),
        _merge("NETWORK_FILTER", _listener(), _stripping(fleet)),
        *(_merge("HTTP_ROUTE", _route(name), _enabled(at)) for name in routes),
        _merge(
            "CLUSTER",
            {"cluster": {"service": at.host(at.router), "portNumber": at.router_port}},
            _router_cluster(clusters["extproc"]),
        ),
    ]
    if fleet.named:
        last = _route_name(fleet.last_route, at)
        name = f"{at.namespace}/{at.name}/model"
        patches.append(_insert(model_filter(name, fleet, last)))
    for model in fleet.models:
        for pool in model.pools[:-1]:
            patches += overflow(pool, model.pools[-1], clusters["vllm_short"], at)
    return _object(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        dns_label(f"{at.name}-{at.namespace}"),
        {
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            "configPatches": patches,
        },
        at.gateway_namespace,
    )


def overflow(pool: str, largest: str, small: Json, at: Placement) -> Iterator[Json]:
    """Yield the patches that retry a pool's overflow on the model's largest pool.

    Args:
        pool: the pool whose server refuses or cuts.
        largest: the pool that gets the retry.
        small: the shipped cluster of a small pool, whose filter marks such responses.
        at: names and namespaces of the objects.
    """
    name = f"{at.namespace}/{at.name}/{pool}"
    aggregate = copy.deepcopy(small)
    for key in ("type", "dns_lookup_family", "load_assignment", "health_checks"):
        del aggregate[key]
    del aggregate["outlier_detection"]
    members = [_cluster(service_of(each), at.pool_port, at) for each in (pool, largest)]
    kind = f"{_TYPES}.extensions.clusters.aggregate.v3.ClusterConfig"
    aggregate |= {
        "name": name,
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {"@type": kind, "clusters": members},
        },
    }
    match = {"context": "GATEWAY"}
    patch = {"operation": "ADD", "value": aggregate}
    yield {"applyTo": "CLUSTER", "match": match, "patch": patch}
    package = f"{_TYPES}.extensions.retry.priority.previous_priorities.v3"
    kind = f"{package}.PreviousPrioritiesConfig"
    mark = {"name": "x-llm-overflow", "string_match": {"exact": "1"}}
    retry = {
        "retry_on": f"retriable-headers,{RETRY_ON}",
        "retriable_headers": [mark],
        "num_retries": 1,
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": kind, "update_frequency": 1},
        },
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
    }
    yield _merge(
        "HTTP_ROUTE",
        _route(_route_name(pool, at)),
        {
            "route": {"cluster": name, "retry_policy": retry},
            "response_headers_to_add": [_ATTEMPTS],
            "response_headers_to_remove": ["x-llm-overflow"],
        },
    )


_ATTEMPTS = {
    "header": {
        "key": "x-envoy-attempt-count",
        "value": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    },
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""The number of attempts, for the router and the client: 2 is a retry.

The usual setting, ``include_attempt_count_in_response``, would apply to all routes of a
host."""


def _router_filter(shipped: Json, at: Placement) -> Json:
    """Return the shipped ext_proc filter, disabled for other hosts on the gateway."""
    asked = copy.deepcopy(ext_proc_filter(shipped))
    cluster = _cluster(at.router, at.router_port, at)
    asked["grpc_service"]["envoy_grpc"]["cluster_name"] = cluster
    return {"name": _router_filter_name(at), "disabled": True, "typed_config": asked}


def _router_cluster(shipped: Json) -> Json:
    """Return what Istio does not set by itself for the cluster of the router."""
    same = ("close_connections_on_host_health_failure", "health_checks", _OPTIONS)
    return {
        # Otherwise an endpoint that Kubernetes removed stays in use as long as it
        # responds.
        "ignore_health_on_host_removal": True,
        **{key: shipped[key] for key in same},
    }


def _router_filter_name(at: Placement) -> str:
    return f"{at.namespace}/{at.name}/router"


def _enabled(at: Placement) -> Json:
    kind = f"{_TYPES}.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
    on = {
        "@type": f"{_TYPES}.config.route.v3.FilterConfig",
        "config": {"@type": kind, "overrides": {}},
    }
    return {
        "typed_per_filter_config": {_router_filter_name(at): on},
        "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
    }


def _stripping(fleet: Fleet) -> Json:
    """Return the mutation that removes router headers from clients' requests.

    It must precede the first route match.
    """
    package = f"{_TYPES}.extensions.http.early_header_mutation.header_mutation.v3"
    mutation = {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{package}.HeaderMutation",
            "mutations": [{"remove": header} for header in fleet.router_headers],
        },
    }
    manager = "extensions.filters.network.http_connection_manager.v3"
    return {
        "typed_config": {
            "@type": f"{_TYPES}.{manager}.HttpConnectionManager",
            "early_header_mutation_extensions": [mutation],
        }
    }


def _listener(filter_: str = "") -> Json:
    chain: Json = {"name": _MANAGER}
    if filter_:
        chain["subFilter"] = {"name": filter_}
    return {"listener": {"filterChain": {"filter": chain}}}


def _route(name: str) -> Json:
    return {"routeConfiguration": {"vhost": {"route": {"name": name}}}}


def _insert(value: Json) -> Json:
    match = {"context": "GATEWAY"} | _listener("envoy.filters.http.router")
    patch = {"operation": "INSERT_BEFORE", "value": value}
    return {"applyTo": "HTTP_FILTER", "match": match, "patch": patch}


def _merge(target: str, match: Json, value: Json) -> Json:
    patch = {"operation": "MERGE", "value": value}
    return {"applyTo": target, "match": {"context": "GATEWAY"} | match, "patch": patch}


def _virtual_service(
    name: str, hosts: Sequence[str], rules: Sequence[Json], at: Placement
) -> Json:
    gateway = f"{at.gateway_namespace}/{at.gateway}"
    spec: Json = {"hosts": list(hosts), "gateways": [gateway], "http": list(rules)}
    return _networking("VirtualService", name, spec, at)


def _router_rule(at: Placement) -> Json:
    limits: Json = {
        "tcp": {"connectTimeout": "250ms"},
        "http": {"http1MaxPendingRequests": 8192, "http2MaxRequests": 8192},
    }
    rule = _destination_rule(at.name, at.router, limits, at)
    rule["spec"]["trafficPolicy"]["outlierDetection"] = {
        "consecutive5xxErrors": 5,
        "interval": "2s",
        "baseEjectionTime": "10s",
        "maxEjectionPercent": 100,
    }
    return rule


def _destination_rule(name: str, service: str, limits: Json, at: Placement) -> Json:
    policy = {"loadBalancer": {"simple": "LEAST_REQUEST"}, "connectionPool": limits}
    spec: Json = {"host": at.host(service), "trafficPolicy": policy}
    return _networking("DestinationRule", name, spec, at)


def _networking(kind: str, name: str, spec: Json, at: Placement) -> Json:
    return _object("networking.istio.io/v1", kind, name, spec, at.namespace)


def _object(api: str, kind: str, name: str, spec: Json, namespace: str) -> Json:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
