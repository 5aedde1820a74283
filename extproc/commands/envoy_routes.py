"""The routes and clusters that Envoy needs for a fleet of models.

Each request goes to its model's largest pool unless the router chooses another pool. A
request for an unknown model is rejected with vLLM's error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from extproc.commands.gateway_fleet import (
    MODEL_HEADER,
    POOL_HEADER,
    REFUSALS,
    RETRY_ON,
    Fleet,
    Json,
    Refusal,
)

NO_MODEL = "no_model"
"""Name of the cluster without endpoints to which the last route leads."""


def routes(fleet: Fleet) -> Iterator[Json]:
    """Yield the routes of a fleet, in order."""
    for model in fleet.models:
        largest = model.pools[-1]
        for pool in model.pools[:-1]:
            yield _small_pool_route(pool, largest)
        if model.name:
            header = _has(MODEL_HEADER, model.name)
            yield _route(largest, _largest_pool(largest), header)
    if fleet.default_pool is not None:
        yield _route(fleet.last_route, _largest_pool(fleet.default_pool))
        return
    for refusal in REFUSALS:
        yield _refusal(refusal)
    # This route matches every request whose model is not yet known. It must not be a
    # direct response, because Envoy buffers no body for direct responses, whatever
    # ``request_body_buffer_limit`` is.
    yield _route(fleet.last_route, {"cluster": NO_MODEL, "timeout": "0s"})


def models_answer(fleet: Fleet) -> Json:
    """Return the route that answers ``GET /v1/models`` for the whole fleet."""
    body = {"inline_string": fleet.models_list}
    return {
        "name": "models",
        "match": {
            "path": "/v1/models",
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
        },
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [_json_type()],
    }


def health_answer() -> Json:
    """Return the route for the gateway's own health check."""
    return {
        "name": "health",
        "match": {"safe_regex": {"regex": "/(health|ping)"}},
        "direct_response": {"status": 200},
    }


def cluster(pool: str) -> str:
    """Return the name of a pool's cluster."""
    return f"vllm_{pool}"


def _small_pool_route(pool: str, largest: str) -> Json:
    """Return the route to a pool; overflows are retried on the largest pool."""
    groups = [
        {"name": name, "clusters": [{"cluster_name": cluster(name), "weight": 1}]}
        for name in (pool, largest)
    ]
    package = "envoy.extensions.router.cluster_specifiers.priority_group.v3"
    kind = f"type.googleapis.com/{package}.PriorityGroupClusterSpecifier"
    action: Json = {
        "timeout": "0s",
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "envoy.router.cluster_specifier_plugin.priority_group",
                "typed_config": {
                    "@type": kind,
                    "priority_groups": groups,
                },
            }
        },
        "retry_policy": {
            "retry_on": f"retriable-headers,{RETRY_ON}",
            "retriable_headers": [
                {"name": "x-llm-overflow", "string_match": {"exact": "1"}}
            ],
            "num_retries": 1,
            "refresh_cluster_on_retry": True,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        },
    }
    return _route(pool, action, _has(POOL_HEADER, pool))


def _largest_pool(pool: str) -> Json:
    return {
        "cluster": cluster(pool),
        "timeout": "0s",
        "retry_policy": {"retry_on": RETRY_ON, "num_retries": 1},
    }


def _route(name: str, action: Json, header: Json | None = None) -> Json:
    return {"name": name, "match": _match(header), "route": action}


def _refusal(refusal: Refusal) -> Json:
    header: Json = (
        {"name": MODEL_HEADER, "present_match": True}
        if refusal.model is None
        else _has(MODEL_HEADER, refusal.model)
    )
    body = {"inline_string": refusal.body}
    return {
        "name": refusal.name,
        "match": _match(header),
        "direct_response": {"status": refusal.status, "body": body},
        "response_headers_to_add": [_json_type()],
    }


def _match(header: Json | None) -> Json:
    return {"prefix": "/"} | ({} if header is None else {"headers": [header]})


def _has(name: str, value: str) -> Json:
    return {"name": name, "string_match": {"exact": value}}


def _json_type() -> Mapping[str, object]:
    return {
        "header": {"key": "content-type", "value": "application/json"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
