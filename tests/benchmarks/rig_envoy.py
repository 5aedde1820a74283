"""The Envoy of the benchmarks: one listener, and a minimal configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TYPE = "type.googleapis.com/envoy.extensions"
BUFFER_BYTES = 40 << 20


def envoy_config(
    port: int,
    admin: int,
    extproc: Sequence[dict[str, Any]],
    answer_with: str,
    backend: int | None = None,
) -> dict[str, Any]:
    """Return a configuration of one listener, with or without ext_proc."""
    router = {"@type": f"{TYPE}.filters.http.router.v3.Router"}
    filters: list[Any] = [{"name": "router", "typed_config": router}]
    clusters = []
    if extproc:
        ext_proc = {
            "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "extproc"}},
            "processing_mode": {
                "request_body_mode": "BUFFERED",
                "response_header_mode": "SKIP",
            },
            "allow_mode_override": True,
            "message_timeout": "10s",
        }
        filters.insert(0, {"name": "ext_proc", "typed_config": ext_proc})
        clusters.append(cluster("extproc", extproc, http2=True))
    route: dict[str, Any] = {"match": {"prefix": "/"}}
    if backend is None:
        route["direct_response"] = {
            "status": 200,
            "body": {"inline_string": answer_with},
        }
        typed = {"header": {"key": "content-type", "value": "application/json"}}
        route["response_headers_to_add"] = [
            typed | {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ]
    else:
        route["route"] = {"cluster": "backend", "timeout": "0s"}
        clusters.append(cluster("backend", [address(backend)], http2=False))
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]
        },
        "http_filters": filters,
    }
    listener = {
        "address": address(port),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": address(admin)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(
    name: str, addresses: Sequence[dict[str, Any]], *, http2: bool
) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": each}} for each in addresses]
    found: dict[str, Any] = {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 9999,
                    "max_pending_requests": 9999,
                    "max_requests": 9999,
                }
            ]
        },
    }
    if http2:
        protocol = {
            "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        found["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol
        }
    return found
