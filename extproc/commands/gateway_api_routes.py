"""The objects that Envoy Gateway needs for a fleet of models.

The objects are HTTPRoutes with rules by ``x-llm-pool`` and ``x-llm-model``, the
policies that call the router, and an EnvoyPatchPolicy with the filter that sets the
model if the router did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from extproc.commands.gateway_fleet import (
    ADAPTERS,
    BUFFER_LIMIT_BYTES,
    FORBIDDEN,
    MODEL_HEADER,
    POOL_HEADER,
    REFUSALS,
    Fleet,
    Json,
)
from extproc.commands.model_filter import model_filter
from extproc.commands.placement import Placement, dns_label, service_of

HEAD = """\
# Envoy Gateway 1.9, with extensionApis.enableBackend and, for several models,
# extensionApis.enableEnvoyPatchPolicy in its own configuration. The pools' Services are
# headless (clusterIP: None). A Gateway has one ClientTrafficPolicy: merge this one into
# yours.
"""

_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_RULES = 16
"""Maximum number of rules in an HTTPRoute (``maxItems``)."""
_HEALTH_CHECK: Json = {"interval": "5s", "timeout": "2s", "unhealthyThreshold": 3}
_TRIGGERS = ["connect-failure", "refused-stream"]


def gateway_api(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield the objects."""
    rules = list(_rules(fleet, at))
    chunks = [rules[i : i + _RULES] for i in range(0, len(rules), _RULES)]
    names = [at.name if not i else f"{at.name}-{i + 1}" for i in range(len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        yield _route(name, chunk, at)
    yield _extension(names, at)
    yield _client_traffic(fleet, at)
    yield _traffic(at.name, [_target("HTTPRoute", name) for name in names], at)
    for name, chunk in zip(names, chunks, strict=True):
        short = [_target("HTTPRoute", name, r["name"]) for r in chunk if _two(r)]
        if short:
            yield _traffic(f"{name}-overflow", short, at, overflow=True)
    yield from _backends(fleet, at)
    yield from _administration(fleet, at)
    if not fleet.named:
        return
    if fleet.default is None:
        yield from _refusals(at)
    last = f"httproute/{at.namespace}/{names[-1]}/rule/{len(chunks[-1]) - 1}/*"
    yield _patch(model_filter(f"{at.namespace}/{at.name}/model", fleet, last), at)


def _rules(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield the rules in order of precedence: rules with more headers come first."""
    for model in fleet.models:
        largest = model.pools[-1]
        headers = {MODEL_HEADER: model.name} if model.name else {}
        for pool in model.pools[:-1]:
            two = [_backend(pool, at), _backend(largest, at, fallback=True)]
            yield _rule(pool, two, {POOL_HEADER: pool} | headers, at)
    for model in fleet.models:
        if model.name:
            largest = model.pools[-1]
            yield _rule(
                largest, [_service(largest, at)], {MODEL_HEADER: model.name}, at
            )
    if fleet.default_pool is not None:
        yield _rule(fleet.last_route, [_service(fleet.default_pool, at)], {}, at)
        return
    for refusal in REFUSALS:
        headers = {} if refusal.model is None else {MODEL_HEADER: refusal.model}
        rule = _rule(refusal.name, [], headers, at)
        if refusal.model is None:
            any_name = {
                "type": "RegularExpression",
                "name": MODEL_HEADER,
                "value": ".+",
            }
            rule["matches"][0]["headers"] = [any_name]
        yield rule | {"filters": [_answer(refusal.name, at)]}
    # This rule matches every request whose model is not yet known. It must not be a
    # direct response, because Envoy buffers no body for direct responses.
    nowhere = _reference(_ENVOY_GATEWAY, "Backend", f"{at.name}-no-model")
    yield _rule(fleet.last_route, [nowhere], {}, at)


def _rule(
    name: str, backends: Sequence[Json], headers: dict[str, str], at: Placement
) -> Json:
    match: Json = {"path": {"type": "PathPrefix", "value": at.path_prefix}}
    if headers:
        match["headers"] = [
            {"type": "Exact", "name": key, "value": value}
            for key, value in headers.items()
        ]
    rule: Json = {"name": dns_label(name), "matches": [match]}
    if backends:
        rule["backendRefs"] = _weighted(backends)
        # Set no limit on the duration of a response, since it may be a stream.
        rule["timeouts"] = {"request": "0s"}
    return rule


def _weighted(backends: Sequence[Json]) -> list[Json]:
    """Write the default weight out, so that a second apply changes nothing."""
    return [{**backend, "weight": 1} for backend in backends]


def _two(rule: Json) -> bool:
    return len(rule.get("backendRefs", ())) == 2


def _route(name: str, rules: Sequence[Json], at: Placement) -> Json:
    gateway = _reference(_GATEWAY_API, "Gateway", at.gateway)
    if at.gateway_namespace != at.namespace:
        gateway["namespace"] = at.gateway_namespace
    spec: Json = {"parentRefs": [gateway]}
    if at.hosts:
        spec["hostnames"] = list(at.hosts)
    return _object(
        f"{_GATEWAY_API}/v1", "HTTPRoute", name, at, spec | {"rules": list(rules)}
    )


def _extension(routes: Sequence[str], at: Placement) -> Json:
    check: Json = {
        "type": "GRPC",
        "interval": "1s",
        "timeout": "1s",
        "unhealthyThreshold": 2,
        "healthyThreshold": 1,
        "grpc": {"service": "envoy.service.ext_proc.v3.ExternalProcessor"},
    }
    router = {
        "backendRefs": _weighted(
            [_reference("", "Service", at.router, port=at.router_port)]
        ),
        "backendSettings": {
            "circuitBreaker": _breaker(1024, 8192),
            "healthCheck": {"active": check, "panicThreshold": 0},
            # It ends a stream whose last chunk a frozen router has.
            "http2": {"connectionKeepalive": {"interval": "3s", "timeout": "2s"}},
        },
        "failOpen": True,
        "messageTimeout": "1s",
        "processingMode": {"allowModeOverride": True, "request": {}},
        "metadata": {"writableNamespaces": ["extproc.token_budget"]},
    }
    spec: Json = {
        "targetRefs": [_target("HTTPRoute", name) for name in routes],
        "mergeType": "StrategicMerge",
        "extProc": [router],
    }
    return _policy("EnvoyExtensionPolicy", at.name, at, spec)


def _client_traffic(fleet: Fleet, at: Placement) -> Json:
    spec: Json = {
        "targetRefs": [_target("Gateway", at.gateway)],
        "connection": {"bufferLimit": BUFFER_LIMIT_BYTES},
        "http2": {
            "initialStreamWindowSize": BUFFER_LIMIT_BYTES,
            "initialConnectionWindowSize": 4 * BUFFER_LIMIT_BYTES,
        },
        "headers": {"earlyRequestHeaders": {"remove": fleet.router_headers}},
    }
    return _policy("ClientTrafficPolicy", at.name, at, spec, at.gateway_namespace)


def _traffic(
    name: str, targets: Sequence[Json], at: Placement, *, overflow: bool = False
) -> Json:
    """Return a policy for the traffic to the pools.

    Args:
        overflow: whether a request is retried on the second pool if the first pool
            returns 400.
    """
    retry: Json = {"numRetries": 1, "retryOn": {"triggers": _TRIGGERS}}
    if overflow:
        statuses = [*_TRIGGERS, "retriable-status-codes"]
        retry["numAttemptsPerPriority"] = 1
        retry["retryOn"] = {"triggers": statuses, "httpStatusCodes": [400]}
    http: Json = {"path": "/health", "expectedStatuses": [200]}
    check = {"type": "HTTP", **_HEALTH_CHECK, "healthyThreshold": 1, "http": http}
    spec: Json = {
        "targetRefs": list(targets),
        "loadBalancer": {"type": "LeastRequest"},
        "circuitBreaker": _breaker(4096, 4096),
        "retry": retry,
        "healthCheck": {"active": check},
    }
    return _policy("BackendTrafficPolicy", name, at, spec)


def _breaker(connections: int, requests: int) -> Json:
    return {
        "maxConnections": connections,
        "maxParallelRequests": requests,
        "maxParallelRetries": 1024,
        "maxPendingRequests": requests,
    }


def _backends(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield a Backend for each pool of each model that has several pools."""
    for model in fleet.models:
        for pool in model.pools if len(model.pools) > 1 else ():
            last = pool == model.pools[-1]
            name = _backend(pool, at, fallback=last)["name"]
            host = at.host(service_of(pool))
            endpoints = [{"fqdn": {"hostname": host, "port": at.pool_port}}]
            # This Backend has a lower priority. It gets the retries, and all requests
            # if the first pool has no healthy server.
            fallback = {"fallback": True} if last else {}
            yield _policy(
                "Backend",
                name,
                at,
                {"type": "Endpoints", **fallback, "endpoints": endpoints},
            )


def _refusals(at: Placement) -> Iterator[Json]:
    for refusal in REFUSALS:
        yield _direct(refusal.name, refusal.status, refusal.body, at)
    host = {"hostname": f"{at.name}-no-model.invalid", "port": at.pool_port}
    endpoints = [{"fqdn": host}]
    spec: Json = {"type": "Endpoints", "endpoints": endpoints}
    yield _policy("Backend", f"{at.name}-no-model", at, spec)


def _administration(fleet: Fleet, at: Placement) -> Iterator[Json]:
    """Yield a route for requests that Envoy itself answers, without the router."""
    forbidden: Json = {
        "name": "adapters",
        "matches": [{"path": {"type": "RegularExpression", "value": ADAPTERS}}],
        "filters": [_answer("forbidden", at)],
    }
    rules = [forbidden]
    yield _direct("forbidden", 403, FORBIDDEN, at)
    if fleet.named:
        path = {"type": "Exact", "value": f"{at.path_prefix}/models"}
        match = {"path": path, "method": "GET"}
        answer = [_answer("models", at)]
        rules.append({"name": "models", "matches": [match], "filters": answer})
        yield _direct("models", 200, fleet.models_list, at)
    yield _route(f"{at.name}-answers", rules, at)


def _direct(name: str, status: int, body: str, at: Placement) -> Json:
    # Envoy Gateway reads the body as a format string, in which % begins a command.
    text = {"type": "Inline", "inline": body.replace("%", "%%")}
    answer = {"statusCode": status, "contentType": "application/json", "body": text}
    name = _answer_name(name, at)
    return _policy("HTTPRouteFilter", name, at, {"directResponse": answer})


def _answer(name: str, at: Placement) -> Json:
    reference = {"group": _ENVOY_GATEWAY, "kind": "HTTPRouteFilter"}
    reference["name"] = _answer_name(name, at)
    return {"type": "ExtensionRef", "extensionRef": reference}


def _answer_name(name: str, at: Placement) -> str:
    return f"{at.name}-{name.replace('_', '-')}"


def _patch(value: Json, at: Placement) -> Json:
    """Return the policy that adds a filter before Envoy's router filter."""
    patch: Json = {
        "type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": f"{at.gateway_namespace}/{at.gateway}/{at.listener}",
        "operation": {
            "op": "add",
            "jsonPath": "..http_filters[?(@.name=='envoy.filters.http.router')]",
            "value": value,
        },
    }
    spec: Json = {
        "targetRef": _target("Gateway", at.gateway),
        "type": "JSONPatch",
        "jsonPatches": [patch],
    }
    return _policy("EnvoyPatchPolicy", at.name, at, spec, at.gateway_namespace)


def _backend(pool: str, at: Placement, *, fallback: bool = False) -> Json:
    name = dns_label(f"{at.name}-{pool}{'-fallback' if fallback else ''}")
    return _reference(_ENVOY_GATEWAY, "Backend", name)


def _service(pool: str, at: Placement) -> Json:
    return _reference("", "Service", service_of(pool), port=at.pool_port)


def _reference(group: str, kind: str, name: str, port: int | None = None) -> Json:
    reference: Json = {"group": group, "kind": kind, "name": name}
    return reference | ({} if port is None else {"port": port})


def _target(kind: str, name: str, section: str | None = None) -> Json:
    target = _reference(_GATEWAY_API, kind, name)
    return target | ({} if section is None else {"sectionName": section})


def _policy(
    kind: str, name: str, at: Placement, spec: Json, namespace: str = ""
) -> Json:
    return _object(f"{_ENVOY_GATEWAY}/v1alpha1", kind, name, at, spec, namespace)


def _object(
    api: str, kind: str, name: str, at: Placement, spec: Json, namespace: str = ""
) -> Json:
    metadata = {"name": name, "namespace": namespace or at.namespace}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
