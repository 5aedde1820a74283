"""The real Envoy Gateway without a cluster: it reads a file and starts Envoy.

``go install`` builds Envoy Gateway, and each version is cached. Envoy Gateway binds
fixed ports on every address, so it runs in a network namespace that has only loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from extproc.demo.stack.envoy_config import find_envoy
from extproc.demo.stack.process import Child

from ..deploy.manifests import Manifest
from .go_program import UnavailableError, installed
from .listening import listens, stat

VERSION = "1.9.0"
ENVOY_VERSION = "1.40.0"
"""Version of the project's own Envoy, which replaces Envoy Gateway's download."""
PACKAGE = "github.com/envoyproxy/gateway/cmd/envoy-gateway"
PORT = 8888
START_S = 240.0
"""Timeout in seconds: a start takes seconds on an idle machine, minutes on a busy one.
"""
API = "gateway.envoyproxy.io/v1alpha1"
READ = {
    "BackendTrafficPolicy",
    "Backend",
    "ClientTrafficPolicy",
    "EnvoyExtensionPolicy",
    "EnvoyPatchPolicy",
    "EnvoyProxy",
    "HTTPRoute",
    "HTTPRouteFilter",
}
"""Kinds of an overlay's objects that Envoy Gateway's file provider reads."""

_CLONE_NEWNET = 0x40000000


def install() -> Path:
    """Return Envoy Gateway's program; build it if it is not in the cache.

    Raises:
        UnavailableError: Go is not installed.
        BuildError: the build failed.
    """
    return installed(PACKAGE, f"v{VERSION}")


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Give this thread and its child processes a network that has only loopback.

    Raises:
        UnavailableError: the system does not permit a new network namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise UnavailableError("needs root, for a network namespace")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(before, 0)
    finally:
        os.close(before)


def without_a_cluster(
    manifests: list[Manifest], services: Mapping[str, int]
) -> list[Manifest]:
    """Replace each Service by a Backend with an address, as the file provider requires.

    Args:
        manifests: the rendered objects, which are not modified.
        services: the loopback port of each Service.
    """
    kept = [item for item in manifests if item["kind"] in READ]
    objects = [*_gateway(), *yaml.safe_load(yaml.safe_dump(kept))]
    proxy, *others = [each for each in objects if each["kind"] == "EnvoyProxy"]
    for other in others:  # a Gateway has one
        proxy["spec"] |= other["spec"]
        objects.remove(other)
    for item in objects:
        for endpoint in item["spec"].get("endpoints", ()) if item.get("spec") else ():
            name = endpoint["fqdn"]["hostname"].partition(".")[0]
            if name in services:
                del endpoint["fqdn"]
                endpoint["ip"] = {"address": "127.0.0.1", "port": services[name]}
    for name, port in services.items():
        address = {"ip": {"address": "127.0.0.1", "port": port}}
        objects.append(_object(API, "Backend", f"service-{name}", endpoints=[address]))
    for references in _find(objects, "backendRefs"):
        for reference in references:
            if reference["kind"] == "Service":
                name = reference["name"]
                del reference["port"]
                reference |= {"group": API.partition("/")[0], "kind": "Backend"}
                reference["name"] = f"service-{name}"
    return objects


def _object(api: str, kind: str, name: str, **spec: Any) -> Manifest:
    metadata = {"name": name, "namespace": "llm"}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _gateway() -> list[Manifest]:
    """Return the objects that the operator of a cluster provides."""
    group = "gateway.networking.k8s.io"
    proxy = _object(
        API,
        "EnvoyProxy",
        "here",
        provider={"type": "Host", "host": {"envoyVersion": ENVOY_VERSION}},
        concurrency=1,
        logging={"level": {"default": "warn"}},
    )
    listener = {"name": "http", "protocol": "HTTP", "port": PORT}
    gateway = _object(
        f"{group}/v1",
        "Gateway",
        "llm-gateway",
        gatewayClassName="here",
        infrastructure={
            "parametersRef": {
                "group": API.partition("/")[0],
                "kind": "EnvoyProxy",
                "name": "here",
            }
        },
        listeners=[listener],
    )
    gateway_class = {
        "apiVersion": f"{group}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "here"},
        "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llm"}}
    return [namespace, gateway_class, proxy, gateway]


def _find(value: Any, key: str) -> Iterator[Any]:
    """Yield all values of a key, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from _find(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _find(inner, key)


class EnvoyGateway:
    """One Envoy Gateway with its Envoy, in the network namespace of the starting
    thread.
    """

    router_cluster = "/llm/token-budget-router/extproc/0"
    pool_clusters = "httproute/.*"
    """The clusters of the pools, as a regular expression."""

    def __init__(
        self, folder: Path, manifests: list[Manifest], services: Mapping[str, int]
    ) -> None:
        """Prepare the files.

        Args:
            folder: a folder for the files.
            manifests: the rendered objects.
            services: the local port of each Service.
        """
        binary = install()
        objects = without_a_cluster(manifests, services)
        self._folder = folder
        for name in ("resources", "config", "data", "state", "runtime"):
            (folder / name).mkdir(parents=True)
        resources = folder / "resources" / "all.yaml"
        resources.write_text(yaml.safe_dump_all(objects))
        (folder / "gateway.yaml").write_text(yaml.safe_dump(self._settings()))
        program = folder / "data" / "envoy-versions" / ENVOY_VERSION / "bin" / "envoy"
        program.parent.mkdir(parents=True)
        program.symlink_to(find_envoy())
        home = {"HOME": str(folder)}
        config = str(folder / "config")
        subprocess.run(
            [binary, "certgen", "--local", "--config-home", config],
            env={**os.environ, **home},
            capture_output=True,
            check=True,
        )
        command = [str(binary), "server", "--config-path", str(folder / "gateway.yaml")]
        self._log = folder / "gateway.log"
        self._child = Child("envoy-gateway", command, self._log, home)
        self.port = PORT

    def __enter__(self) -> Self:
        self._child.start()
        try:
            self._child.wait_ready(lambda: listens(PORT), START_S)
        except BaseException:
            self._child.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.stop()

    def _settings(self) -> Manifest:
        folder = self._folder
        homes = {
            "configHome": str(folder / "config"),
            "dataHome": str(folder / "data"),
            "stateHome": str(folder / "state"),
            "runtimeDir": str(folder / "runtime"),
        }
        files = {"type": "File", "file": {"paths": [str(folder / "resources")]}}
        return {
            "apiVersion": API,
            "kind": "EnvoyGateway",
            "gateway": {
                "controllerName": "gateway.envoyproxy.io/gatewayclass-controller"
            },
            "provider": {
                "type": "Custom",
                "custom": {
                    "resource": files,
                    "infrastructure": {"type": "Host", "host": homes},
                },
            },
            "extensionApis": {"enableBackend": True, "enableEnvoyPatchPolicy": True},
        }

    def complaints(self) -> list[str]:
        """Return the conditions that Envoy Gateway sets on objects that it does not use."""
        lines = self._log.read_text().splitlines()
        reasons = [line.split(": ")[1] for line in lines if "reason: " in line]
        assert "Accepted" in reasons
        return [reason for reason in reasons if reason not in _FINE]

    def stat(self, name: str) -> int:
        """Return the sum of Envoy's counters or gauges whose names match a pattern."""
        (file,) = self._folder.glob("runtime/*/admin-address.txt")
        return stat(f"http://{file.read_text().strip()}", name)


_FINE = {
    "Accepted",
    "AddressNotAssigned",  # it has no address to give without a cluster
    "Overridden",  # the route's policy, for the rules with one of their own
    "Programmed",
    "ResolvedRefs",
}
