"""Translate an overlay's objects to Envoy configuration, as its gateway does.

The translation is written by hand, field by field, from the documentation of the
gateways.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from .manifests import Manifest

Config = dict[str, Any]
Address = tuple[str, int]

TYPES = "type.googleapis.com/envoy"
EXT_PROC = f"{TYPES}.extensions.filters.http.ext_proc.v3.ExternalProcessor"
ROUTER_FILTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
}
NAME = "token-budget-router"
HTTP_MANAGER = "envoy.filters.network.http_connection_manager"


@dataclass
class Gateway:
    """The Envoy configuration of one overlay: a listener and its clusters."""

    listener: Config
    clusters: list[Config]


def cluster(name: str, address: Address, **settings: Any) -> Config:
    host, port = address
    endpoint = {"address": {"socket_address": {"address": host, "port_value": port}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    } | settings


def http2() -> Config:
    """Return the options of a cluster for gRPC."""
    options = f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    }


def listener(name: str, routes: list[Config], filters: list[Config]) -> Config:
    """Return a listener as gateways create it before they apply any policy."""
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": routes,
                    # This header shows the tests which cluster answered.
                    "response_headers_to_add": [
                        {
                            "header": {
                                "key": "x-served-by",
                                "value": "%UPSTREAM_CLUSTER%",
                            }
                        }
                    ],
                }
            ]
        },
        "http_filters": [*filters, ROUTER_FILTER],
    }
    return {
        "name": name,
        "filter_chains": [
            {"filters": [{"name": HTTP_MANAGER, "typed_config": manager}]}
        ],
    }


def manager_of(one: Config) -> Config:
    found: Config = one["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def remove_early(headers: list[str]) -> list[Config]:
    return [
        {
            "name": "envoy.http.early_header_mutation.header_mutation",
            "typed_config": {
                "@type": f"{TYPES}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                "mutations": [{"remove": header} for header in headers],
            },
        }
    ]


def of_kind(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]
    return found


def http_routes(route: Manifest) -> tuple[list[Config], list[list[str]]]:
    """Translate an HTTPRoute's rules to routes; also return each route's backends.

    A route's cluster is named after its first backend.
    """
    routes, backends = [], []
    for rule in route["spec"]["rules"]:
        (match,) = rule["matches"]
        names = [backend["name"] for backend in rule["backendRefs"]]
        assert match["path"]["type"] == "PathPrefix"
        backends.append(names)
        routes.append(
            {
                **({"name": rule["name"]} if "name" in rule else {}),
                "match": {
                    "path_separated_prefix": match["path"]["value"],
                    "headers": [
                        {"name": h["name"], "string_match": {"exact": h["value"]}}
                        for h in match.get("headers", [])
                    ],
                },
                "route": {
                    "cluster": names[0],
                    "timeout": rule.get("timeouts", {}).get("request", "15s"),
                },
            }
        )
    return routes, backends


def envoy_gateway(manifests: list[Manifest], at: dict[str, Address]) -> Gateway:
    routes, backends = http_routes(of_kind(manifests, "HTTPRoute", NAME))
    (asked,) = of_kind(manifests, "EnvoyExtensionPolicy")["spec"]["extProc"]
    mode = asked["processingMode"]
    assert mode["request"] == {}
    name = "envoy.filters.http.ext_proc/envoyextensionpolicy/llm/token-budget-router/0"
    policy = {
        "name": name,
        # The filter chain that all routes share contains the filter. The filter is
        # enabled only for routes that have the policy.
        "disabled": True,
        "typed_config": {
            "@type": EXT_PROC,
            "grpc_service": {"envoy_grpc": {"cluster_name": name}},
            "failure_mode_allow": asked["failOpen"],
            "message_timeout": asked["messageTimeout"],
            "allow_mode_override": mode["allowModeOverride"],
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": "NONE",
                "request_trailer_mode": "SKIP",
                "response_header_mode": "SKIP",
                "response_body_mode": "NONE",
                "response_trailer_mode": "SKIP",
            },
            "metadata_options": {
                "receiving_namespaces": {
                    "untyped": asked["metadata"]["writableNamespaces"]
                }
            },
        },
    }
    rules = of_kind(manifests, "HTTPRoute", NAME)["spec"]["rules"]
    for route, rule in zip(routes, rules, strict=True):
        route["typed_per_filter_config"] = {
            name: {"@type": f"{TYPES}.config.route.v3.FilterConfig", "config": {}}
        }
        retry = traffic_policy(manifests, rule["name"])["retry"]
        route["route"]["retry_policy"] = {
            "num_retries": retry["numRetries"],
            "retry_on": ",".join(retry["retryOn"]["triggers"]),
            "retriable_status_codes": retry["retryOn"].get("httpStatusCodes", []),
        }
        if "numAttemptsPerPriority" in retry:
            name_of = "envoy.retry_priorities.previous_priorities"
            route["route"]["retry_policy"]["retry_priority"] = {
                "name": name_of,
                "typed_config": {
                    "@type": f"{TYPES}.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                    "update_frequency": retry["numAttemptsPerPriority"],
                },
            }
    made = listener("envoy-gateway", routes, [policy])
    client = of_kind(manifests, "ClientTrafficPolicy")["spec"]
    made["per_connection_buffer_limit_bytes"] = client["connection"]["bufferLimit"]
    manager_of(made)["early_header_mutation_extensions"] = remove_early(
        client["headers"]["earlyRequestHeaders"]["remove"]
    )
    breaker = asked["backendSettings"]["circuitBreaker"]
    threshold = {
        "max_requests": breaker["maxParallelRequests"],
        "max_pending_requests": breaker["maxPendingRequests"],
    }
    router_cluster = cluster(
        name,
        at[asked["backendRefs"][0]["name"]],
        circuit_breakers={"thresholds": [threshold]},
        **http2(),
    )
    clusters = [backend_cluster(manifests, names, at) for names in backends]
    return Gateway(made, [router_cluster, *clusters])


def traffic_policy(manifests: list[Manifest], rule: str) -> Config:
    """Return a rule's own policy, or the route's policy if the rule has none."""
    policies = {
        target.get("sectionName"): manifest["spec"]
        for manifest in manifests
        if manifest["kind"] == "BackendTrafficPolicy"
        for target in manifest["spec"]["targetRefs"]
    }
    found: Config = policies.get(rule) or policies[None]
    return found


def backend_cluster(
    manifests: list[Manifest], names: list[str], at: dict[str, Address]
) -> Config:
    """Return the cluster of a rule's Service or Backends; fallbacks get a lower
    priority.
    """
    backends = {
        m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "Backend"
    }
    if len(names) == 1:
        return cluster(names[0], at[names[0]])
    localities = []
    for name in names:
        (endpoint,) = backends[name]["endpoints"]
        service = endpoint["fqdn"]["hostname"].partition(".")[0]
        (locality,) = cluster(name, at[service])["load_assignment"]["endpoints"]
        locality["priority"] = 1 if backends[name].get("fallback") else 0
        localities.append(locality)
    assignment = {"cluster_name": names[0], "endpoints": localities}
    return {"name": names[0], "type": "STATIC", "load_assignment": assignment}


def gke(manifests: list[Manifest], at: dict[str, Address]) -> Gateway:
    routes, backends = http_routes(of_kind(manifests, "HTTPRoute", NAME))
    (chain,) = of_kind(manifests, "GCPRoutingExtension")["spec"]["extensionChains"]
    (asked,) = chain["extensions"]
    events = asked["supportedEvents"]
    assert asked["requestBodySendMode"] == "FullDuplexStreamed"
    callout = {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": EXT_PROC,
            "grpc_service": {
                "envoy_grpc": {
                    "cluster_name": "callout",
                    "authority": asked["authority"],
                }
            },
            "message_timeout": asked["timeout"],
            "processing_mode": {
                "request_header_mode": "SEND" if "RequestHeaders" in events else "SKIP",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND"
                if "RequestTrailers" in events
                else "SKIP",
                "response_header_mode": "SKIP",
                "response_body_mode": "NONE",
                "response_trailer_mode": "SKIP",
            },
        },
    }
    made = listener("gke", routes, [callout])
    called = cluster("callout", at[asked["backendRef"]["name"]], **http2())
    return Gateway(made, [called, *(cluster(b, at[b]) for (b,) in backends)])


def patched(gateway: Gateway, envoy_filter: Manifest) -> Gateway:
    """Return a gateway after applying an EnvoyFilter's patches as istiod does."""
    gateway = copy.deepcopy(gateway)
    made = gateway.listener
    (host,) = manager_of(made)["route_config"]["virtual_hosts"]
    for patch in envoy_filter["spec"]["configPatches"]:
        assert patch["match"]["context"] == "GATEWAY"
        value = copy.deepcopy(patch["patch"]["value"])
        filters = manager_of(made)["http_filters"]
        match patch["applyTo"], patch["patch"]["operation"]:
            case "HTTP_FILTER", "INSERT_FIRST":
                filters.insert(0, value)
            case "HTTP_FILTER", "INSERT_BEFORE":
                chain = patch["match"]["listener"]["filterChain"]
                anchor = chain["filter"]["subFilter"]["name"]
                filters.insert([f["name"] for f in filters].index(anchor), value)
            case "NETWORK_FILTER", "MERGE":
                merge(made["filter_chains"][0]["filters"][0], value)
            case "LISTENER", "MERGE":
                merge(made, value)
            case "HTTP_ROUTE", "MERGE":
                named = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
                (route,) = [each for each in host["routes"] if each["name"] == named]
                merge(route, value)
            case "CLUSTER", "ADD":
                gateway.clusters.append(value)
            case "CLUSTER", "MERGE":
                asked = patch["match"]["cluster"]
                named = f"outbound|{asked['portNumber']}||{asked['service']}"
                (one,) = [each for each in gateway.clusters if each["name"] == named]
                merge(one, value)
            case other:
                pytest.fail(f"a patch that these tests cannot apply: {other}")
    return gateway


def merge(into: Config, value: Config) -> None:
    """Merge like protobuf: merge messages, append lists, and replace other values."""
    for key, inner in value.items():
        if isinstance(inner, dict) and isinstance(into.get(key), dict):
            merge(into[key], inner)
        elif isinstance(inner, list):
            into[key] = [*into.get(key, []), *inner]
        else:
            into[key] = inner


def mesh_router_cluster(
    manifests: list[Manifest], at: dict[str, Address], name: str = NAME
) -> Config:
    rule = of_kind(manifests, "DestinationRule", name)["spec"]
    policy = rule["trafficPolicy"]
    pool = policy["connectionPool"]
    outliers = policy["outlierDetection"]
    threshold = {
        "max_requests": pool["http"]["http2MaxRequests"],
        "max_pending_requests": pool["http"]["http1MaxPendingRequests"],
    }
    return cluster(
        f"outbound|9002||{rule['host']}",
        at["token-budget-router"],
        # The JSON format of protobuf supports only seconds.
        connect_timeout=f"{int(pool['tcp']['connectTimeout'].removesuffix('ms')) / 1000}s",
        lb_policy=policy["loadBalancer"]["simple"],
        circuit_breakers={"thresholds": [threshold]},
        outlier_detection={
            "consecutive_5xx": outliers["consecutive5xxErrors"],
            "interval": outliers["interval"],
            "base_ejection_time": outliers["baseEjectionTime"],
            "max_ejection_percent": outliers["maxEjectionPercent"],
        },
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
        **http2(),
    )


def istio(
    manifests: list[Manifest], at: dict[str, Address], name: str = NAME
) -> Gateway:
    """Translate Istio's objects.

    Args:
        manifests: the objects.
        at: the address of each Service, as Istio knows no other hosts.
        name: name of the VirtualService and of the router's DestinationRule.
    """
    routes, clusters = [], [mesh_router_cluster(manifests, at, name)]
    for rule in of_kind(manifests, "VirtualService", name)["spec"]["http"]:
        route = {"name": rule["name"], "match": istio_match(rule)}
        routes.append(route)
        if "directResponse" in rule:
            answer = rule["directResponse"]
            body = {"inline_string": answer["body"]["string"]}
            route["direct_response"] = {"status": answer["status"], "body": body}
            route["response_headers_to_add"] = [
                {
                    "header": {"key": key, "value": value},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
                for key, value in rule["headers"]["response"]["set"].items()
            ]
            continue
        (target,) = rule["route"]
        destination = target["destination"]
        service = destination["host"].partition(".")[0]
        cluster_name = (
            f"outbound|{destination['port']['number']}||{destination['host']}"
        )
        # Istio has no timeout by default.
        route["route"] = {"cluster": cluster_name, "timeout": rule.get("timeout", "0s")}
        if "retries" in rule:
            route["route"]["retry_policy"] = {
                "num_retries": rule["retries"]["attempts"],
                "retry_on": rule["retries"]["retryOn"],
            }
        known = {each["name"] for each in clusters}
        if service in at and cluster_name not in known:
            clusters.append(cluster(cluster_name, at[service]))
    plain = Gateway(listener("istio", routes, []), clusters)
    # A configuration that Envoy receives from a control plane always has this value.
    manager_of(plain.listener)["route_config"]["validate_clusters"] = False
    for item in manifests:
        if item["kind"] == "EnvoyFilter":
            plain = patched(plain, item)
    return plain


def istio_match(rule: Config) -> Config:
    (match,) = rule["match"]
    headers = dict(match.get("headers", {}))
    if "method" in match:
        headers[":method"] = match["method"]
    ((kind, value),) = match["uri"].items()
    path = {"safe_regex": {"regex": value}} if kind == "regex" else {PATHS[kind]: value}
    return path | {
        "headers": [
            {"name": name, "string_match": string_match(value)}
            for name, value in headers.items()
        ]
    }


PATHS = {"prefix": "prefix", "exact": "path"}


def string_match(value: Config) -> Config:
    """Translate Istio's StringMatch."""
    if "regex" in value:
        return {"safe_regex": {"regex": value["regex"]}}
    return value


def inference_extension(manifests: list[Manifest], at: dict[str, Address]) -> Gateway:
    routes, backends = http_routes(of_kind(manifests, "HTTPRoute", NAME))
    for (backend,) in backends:
        of_kind(manifests, "InferencePool", backend)
    clusters = [cluster(b, at[b]) for (b,) in backends]
    plain = Gateway(
        listener("inference-extension", routes, []),
        [mesh_router_cluster(manifests, at), *clusters],
    )
    made = patched(plain, of_kind(manifests, "EnvoyFilter"))
    names = [each["name"] for each in manager_of(made.listener)["http_filters"]]
    assert names[:2] == [f"llm/{NAME}/adapters", f"llm/{NAME}/router"]
    return made


TRANSLATIONS: dict[str, Callable[[list[Manifest], dict[str, Address]], Gateway]] = {
    "envoy-gateway": envoy_gateway,
    "gke": gke,
    "inference-extension": inference_extension,
    "istio": istio,
}


def renamed(gateway: Gateway, prefix: str) -> Gateway:
    """Return a configuration with prefixed names, so that one Envoy can have several."""
    text = json.dumps([gateway.listener, gateway.clusters])
    for one in gateway.clusters:
        text = text.replace(
            json.dumps(one["name"]), json.dumps(f"{prefix}/{one['name']}")
        )
    made, clusters = json.loads(text)
    made["name"] = prefix
    return Gateway(made, clusters)
