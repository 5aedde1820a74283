"""The names, namespaces and hosts of the objects of ``extproc routes`` in a cluster."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.commands.gateway_fleet import Fleet

_LABEL_LENGTH = 63
"""Maximum length of a DNS label (RFC 1123); the name of a Service must be a label."""
_PREFIX_LENGTH = 40
"""Maximum length of a configuration's name, so that suffixes fit into a label."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The Kubernetes names that belong to a configuration."""

    name: str
    """Name of the routes and policies, and the prefix of all other names."""
    namespace: str
    """Namespace of the router, of the pools' Services, and of routes and policies."""
    gateway: str
    gateway_namespace: str
    listener: str
    """Name of the Gateway's listener."""
    hosts: Sequence[str]
    """Host names of the requests; empty means any."""
    path_prefix: str = "/v1"
    router: str = "token-budget-router"
    """Name of the router's Service."""
    router_port: int = 9002
    pool_port: int = 8000
    """vLLM's default port."""

    def host(self, service: str) -> str:
        """Return a Service's DNS name."""
        return f"{service}.{self.namespace}.svc.cluster.local"


def service_of(pool: str) -> str:
    """Return the name of a pool's Service."""
    return dns_label(f"vllm-{pool}")


def name_of(fleet: Fleet) -> str:
    """Return a name for a configuration's objects, from its models or its pools."""
    names = [model.name for model in fleet.models if model.name]
    return dns_label("-".join(names or fleet.models[0].pools), _PREFIX_LENGTH)


def dns_label(text: str, length: int = _LABEL_LENGTH) -> str:
    """Return a DNS label for a text, with a hash at the end if the two differ."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= length:
        return plain
    suffix = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{plain[: length - 7].strip('-') or 'x'}-{suffix}"
