"""Print the gateway's routes and clusters for a configuration's pools.

Examples:
  extproc routes --config extproc.yaml                    Envoy
  extproc routes --config extproc.yaml --for gateway-api  Envoy Gateway
  extproc routes --config extproc.yaml --for istio        Istio
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from extproc.commands import gateway_api_routes, istio_routes
from extproc.commands.block_yaml import BlockDumper
from extproc.commands.check_config import read_config
from extproc.commands.envoy_routes import NO_MODEL, cluster, models_answer, routes
from extproc.commands.gateway_fleet import Fleet, Json, fleet_of
from extproc.commands.model_filter import model_filter
from extproc.commands.placement import Placement, dns_label, name_of
from extproc.demo.stack.envoy_config import EnvoyConfigError, find_config, load_config

Writer = tuple[str, Callable[[Fleet, Placement], Iterable[Json]]]


_DIRECT_RESPONSE_BYTES = 4096
"""Envoy's default limit on the body of a direct response."""

_PORT = 8000
"""vLLM's default port."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration of the router"
    )
    parser.add_argument(
        "--for",
        dest="target",
        choices=sorted(_WRITERS),
        default="envoy",
        help="kind of gateway (default: %(default)s)",
    )
    kubernetes = parser.add_argument_group("for gateway-api and istio")
    kubernetes.add_argument(
        "--name",
        type=_label,
        help="name of the objects (default: made from the models or pools)",
    )
    kubernetes.add_argument(
        "--namespace",
        type=_label,
        default="llm",
        help="namespace of the router and the pools (default: %(default)s)",
    )
    kubernetes.add_argument(
        "--gateway",
        default="llm-gateway",
        metavar="[NAMESPACE/]NAME",
        help="the Gateway (default: %(default)s, for istio in istio-system)",
    )
    kubernetes.add_argument(
        "--listener",
        type=_label,
        default="http",
        help="the Gateway's listener (default: %(default)s)",
    )
    kubernetes.add_argument(
        "--host",
        action="append",
        default=[],
        help="a host of the requests; repeat it for several (default: any)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the routes. Return 2 if the configuration is invalid."""
    config = read_config(args.config)
    if config is None:
        return 2
    fleet = fleet_of(config)
    head, write = _WRITERS[args.target]
    try:
        documents = list(write(fleet, _placement(args, fleet)))
    except EnvoyConfigError as error:
        print(f"extproc: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(head)
    yaml.dump_all(documents, sys.stdout, BlockDumper, sort_keys=False, width=120)
    return 0


def _placement(args: argparse.Namespace, fleet: Fleet) -> Placement:
    own = "istio-system" if args.target == "istio" else args.namespace
    namespace, _, gateway = args.gateway.rpartition("/")
    return Placement(
        name=args.name or name_of(fleet),
        namespace=args.namespace,
        gateway=gateway,
        gateway_namespace=namespace or own,
        listener=args.listener,
        hosts=args.host,
    )


def _label(text: str) -> str:
    if dns_label(text) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected lower-case letters, digits and '-'"
        )
    return text


def _for_envoy(fleet: Fleet, _at: Placement) -> Iterator[Json]:
    document: Json = {
        "early_header_mutations": [
            {"remove": header} for header in fleet.router_headers
        ],
        "http_filters_after_ext_proc": [],
        "routes": [
            *([models_answer(fleet)] if fleet.named else ()),
            *routes(fleet),
        ],
        "clusters": list(_clusters(fleet)),
    }
    if fleet.named:
        lua = model_filter("envoy.filters.http.lua", fleet, fleet.last_route)
        document["http_filters_after_ext_proc"].append(lua)
        document["clusters"].append({"name": NO_MODEL, "type": "STATIC"})
        listed = len(fleet.models_list.encode())
        if listed > _DIRECT_RESPONSE_BYTES:
            limit = {"max_direct_response_body_size_bytes": listed}
            document = {"route_config": limit} | document
    yield document


def _clusters(fleet: Fleet) -> Iterator[Json]:
    """Yield a cluster for each pool, like those of ``envoy.yaml``."""
    shipped = load_config(find_config())["static_resources"]["clusters"]
    by_name = {each["name"]: each for each in shipped}
    for model in fleet.models:
        for pool in model.pools:
            largest = pool == model.pools[-1]
            made = copy.deepcopy(by_name["vllm_long" if largest else "vllm_short"])
            address = {"address": f"vllm-{pool}", "port_value": _PORT}
            endpoint = {"endpoint": {"address": {"socket_address": address}}}
            made["name"] = cluster(pool)
            made["load_assignment"] = {
                "cluster_name": cluster(pool),
                "endpoints": [{"lb_endpoints": [endpoint]}],
            }
            yield made


_WRITERS: dict[str, Writer] = {
    "envoy": ("", _for_envoy),
    "gateway-api": (gateway_api_routes.HEAD, gateway_api_routes.gateway_api),
    "istio": (istio_routes.HEAD, istio_routes.istio),
}
"""For each format, the comment at the top of the file and the function that yields the
documents."""
