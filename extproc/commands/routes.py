"""Print the gateway's routes and clusters for a configuration's pools.

Examples:
  extproc routes --config extproc.yaml                    for Envoy
  extproc routes --config extproc.yaml --for gateway-api  an HTTPRoute
  extproc routes --config extproc.yaml --for istio        a VirtualService
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from extproc.commands.check_config import read_config
from extproc.commands.envoy_routes import (
    MODEL_HEADER,
    NO_MODEL,
    POOL_HEADER,
    Model,
    cluster,
    model_filter,
    models_answer,
    routes,
)
from extproc.config import Config, DefaultModelConfig
from extproc.demo.stack.envoy_config import EnvoyConfigError, find_config, load_config

Json = dict[str, Any]

_BUFFER_LIMIT = 32 << 20
"""``request_body_buffer_limit`` of the shipped ``envoy.yaml``."""

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


def run(args: argparse.Namespace) -> int:
    """Print the routes. Return 2 if the configuration is invalid."""
    config = read_config(args.config)
    if config is None:
        return 2
    try:
        document = _WRITERS[args.target](fleet_of(config), default_of(config))
    except EnvoyConfigError as error:
        print(f"extproc: {error}", file=sys.stderr)
        return 2
    yaml.dump(document, sys.stdout, _Dumper, sort_keys=False, width=120)
    return 0


def fleet_of(config: Config) -> list[Model]:
    """Return a configuration's models; ``pools`` alone yield one without a name."""
    if not config.models:
        return [Model("", [pool.name for pool in config.pools])]
    return [
        Model(name, [pool.name for pool in model.pools], model.adapters)
        for name, model in config.models.items()
    ]


def default_of(config: Config) -> str | None:
    """Return the model that serves requests for models that are not configured."""
    if not config.models:
        return ""
    unknown = config.unknown_model
    return unknown.default if isinstance(unknown, DefaultModelConfig) else None


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as blocks."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent)


def _for_envoy(models: Sequence[Model], default: str | None) -> Json:
    named = any(model.name for model in models)
    headers = [POOL_HEADER, "x-llm-budget", "x-llm-overflow", "x-llm-retry-cut"]
    headers += [MODEL_HEADER] if named else []
    document: Json = {
        "early_header_mutations": [{"remove": header} for header in headers],
        "http_filters_after_ext_proc": [],
        "routes": [
            *([models_answer(models)] if named else ()),
            *routes(models, default),
        ],
        "clusters": list(_clusters(models)),
    }
    if named:
        document["http_filters_after_ext_proc"].append(_lua(models))
        document["clusters"].append({"name": NO_MODEL, "type": "STATIC"})
    return document


def _lua(models: Sequence[Model]) -> Json:
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    source = model_filter(models, _BUFFER_LIMIT)
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": kind,
            "default_source_code": {"inline_string": source},
        },
    }


def _clusters(models: Sequence[Model]) -> Iterator[Json]:
    """Yield a cluster for each pool, like those of ``envoy.yaml``."""
    shipped = load_config(find_config())["static_resources"]["clusters"]
    by_name = {each["name"]: each for each in shipped}
    for model in models:
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


def _header_rules(models: Sequence[Model]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield each pool's header rule; the last, for all others, has no headers."""
    for model in models:
        for pool in model.pools[:-1]:
            yield {POOL_HEADER: pool}, pool
        yield {MODEL_HEADER: model.name} if model.name else {}, model.pools[-1]


def _rules(
    models: Sequence[Model], default: str | None
) -> Iterator[tuple[Mapping[str, str], str]]:
    yield from _header_rules(models)
    if default:
        yield from (({}, m.pools[-1]) for m in models if m.name == default)


def _for_gateway_api(models: Sequence[Model], default: str | None) -> Json:
    rules: list[Json] = []
    for headers, pool in _rules(models, default):
        rule: Json = {"backendRefs": [{"name": f"vllm-{pool}", "port": _PORT}]}
        if headers:
            matches = [
                {"name": name, "value": value} for name, value in headers.items()
            ]
            rule = {"matches": [{"headers": matches}]} | rule
        rules.append(rule)
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "llm"},
        "spec": {"parentRefs": [{"name": "llm-gateway"}], "rules": rules},
    }


def _for_istio(models: Sequence[Model], default: str | None) -> Json:
    rules: list[Json] = []
    for headers, pool in _rules(models, default):
        host = {"host": f"vllm-{pool}", "port": {"number": _PORT}}
        rule: Json = {"route": [{"destination": host}], "timeout": "0s"}
        if headers:
            exact = {name: {"exact": value} for name, value in headers.items()}
            rule = {"match": [{"headers": exact}]} | rule
        rules.append(rule)
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "llm"},
        "spec": {"hosts": ["*"], "gateways": ["llm-gateway"], "http": rules},
    }


_WRITERS: dict[str, Callable[[Sequence[Model], str | None], Json]] = {
    "envoy": _for_envoy,
    "gateway-api": _for_gateway_api,
    "istio": _for_istio,
}
