"""Where the objects of ``extproc routes`` live in a cluster, and their names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.commands.envoy_routes import Model

_LABEL_LENGTH = 63
"""Longest DNS label (RFC 1123), which the name of a Service must be."""
_PREFIX_LENGTH = 40
"""Longest name of a configuration, so that suffixes fit into a label."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The cluster's side of a configuration."""

    name: str
    """Name of the routes and policies, and the prefix of all other names."""
    namespace: str
    """Namespace of the router, the pools' Services, routes and policies."""
    gateway: str
    gateway_namespace: str
    listener: str
    """Name of the Gateway's listener."""
    hosts: Sequence[str]
    """Hosts of the requests; empty means any."""
    path_prefix: str = "/v1"
    router: str = "token-budget-router"
    """The router's Service."""
    router_port: int = 9002
    pool_port: int = 8000
    """vLLM's default port."""

    def host(self, service: str) -> str:
        """Return a Service's DNS name."""
        return f"{service}.{self.namespace}.svc.cluster.local"


def service_of(pool: str) -> str:
    """Return the name of a pool's Service."""
    return dns_label(f"vllm-{pool}")


def name_of(models: Sequence[Model]) -> str:
    """Return a name for a configuration's objects: its models', or its pools'."""
    names = [model.name for model in models if model.name]
    return dns_label("-".join(names or models[0].pools), _PREFIX_LENGTH)


def dns_label(text: str, length: int = _LABEL_LENGTH) -> str:
    """Return a DNS label; one that differs from the text ends with a hash of it."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= length:
        return plain
    suffix = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{plain[: length - 7].strip('-') or 'x'}-{suffix}"
