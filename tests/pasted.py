"""Paste ``envoy/ext_proc_filter.yaml`` into a minimal Envoy configuration."""

from pathlib import Path
from typing import Any

import yaml

PIECES = Path(__file__).parents[1] / "envoy" / "ext_proc_filter.yaml"
_TYPES = "type.googleapis.com/envoy.extensions.filters"


def composed() -> dict[str, Any]:
    """Return a user's Envoy configuration with two pools, and with the pasted parts."""
    pieces = yaml.safe_load(PIECES.read_text())
    (host,) = pieces["virtual_hosts"]
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"},
    }
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "mesh",
        "early_header_mutation_extensions": pieces["early_header_mutation_extensions"],
        "http_filters": [*pieces["http_filters"], router],
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], **host}],
        },
    }
    connection = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    listener = {
        "name": "mesh",
        "address": _address("127.0.0.1", 0),
        "filter_chains": [{"filters": [connection]}],
    }
    additions = {cluster["name"]: cluster for cluster in pieces["clusters"]}
    pools = [
        _pool(name) | additions.pop(name, {}) for name in ("vllm_short", "vllm_long")
    ]
    return {
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [*additions.values(), *pools],
        },
    }


def _pool(name: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address("127.0.0.1", 8000)}}
    endpoints = [{"lb_endpoints": [endpoint]}]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
