"""Istio's own translation of manifests, and an Envoy that runs it, without a cluster.

``istio_files`` is a Go program of these tests with Istio's control plane inside. It reads
the manifests and the objects that a cluster adds, and serves the result by xDS. The
Envoy is the project's own, since Istio's needs a container image.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

import yaml

from extproc.demo.stack.envoy_config import find_envoy
from extproc.demo.stack.process import Child, free_ports

from ..deploy.manifests import Manifest
from ..patience import PATIENCE_S
from .go_program import built
from .istio_objects import HERE, POD, READ, in_a_cluster
from .listening import listens, stat

SOURCE = Path(__file__).with_name("istio_files")
SETTINGS = {
    # Two filters of Istio's own Envoy, which other Envoys lack.
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "ENABLE_GATEWAY_API_INFERENCE_EXTENSION": "true",
}
"""Settings of istiod."""
NO_MORE: Mapping[str, str] = MappingProxyType({})


def program() -> Path:
    """Return the program; build it if it is not in the cache.

    Raises:
        UnavailableError: Go is not installed.
        BuildError: the build failed.
    """
    return built(SOURCE)


def refusals(manifests: Sequence[Manifest], folder: Path) -> str:
    """Return what Istio's admission webhook would refuse or warn of; empty if nothing."""
    read = [item for item in manifests if item["kind"] in READ]
    path = _written(read, folder / "validate.yaml")
    command = [str(program()), "validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if _INTERNAL.fullmatch(done.stderr) else done.stderr


_INTERNAL = re.compile(
    r"(istio_files: )?((EnvoyFilter .*: )?EnvoyFilter exposes internal implementation "
    r"details that may change .*\s*)*"
)
"""The warning that every EnvoyFilter gets."""


class Istio:
    """Istio's translation with one Envoy."""

    router_cluster = "outbound.9002..token-budget-router.llm.svc.cluster.local;?"
    pool_clusters = "outbound.8000..vllm-.*"
    """The clusters of the pools, as a regular expression."""

    def __init__(
        self,
        folder: Path,
        manifests: Sequence[Manifest],
        services: Mapping[str, int],
        settings: Mapping[str, str] = NO_MORE,
    ) -> None:
        """Prepare the files.

        Args:
            folder: a folder for the files.
            manifests: the rendered objects.
            services: the local port of each Service; 0 for one without an endpoint.
            settings: more settings of istiod.
        """
        self._folder = folder
        self._manifests = manifests
        self._services = dict(services)
        self._settings = {**SETTINGS, **settings}
        self.port, self._xds_port, self._admin_port = free_ports(3)
        self._log = folder / "istio.log"
        self._control = self._translation()
        config = _written([self._bootstrap()], folder / "envoy.yaml")
        command = [find_envoy(), "--config-path", str(config), "--use-dynamic-base-id"]
        command += ["--concurrency", "1", "--log-level", "warning"]
        self._envoy = Child("envoy", command, folder / "envoy.log")

    def __enter__(self) -> Self:
        try:
            self._start(self._control, self._xds_port)
            self._start(self._envoy, self.port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._envoy.stop()
        self._control.stop()

    def move(self, services: Mapping[str, int]) -> None:
        """Give Services other endpoints, as when Kubernetes replaces a pod."""
        self._services |= services
        self._control.stop()
        self._control = self._translation()
        self._start(self._control, self._xds_port)

    def complaints(self) -> list[str]:
        """Return Istio's messages about patches that it or Envoy did not apply."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if any(mark in line for mark in _COMPLAINTS)]

    def stat(self, name: str) -> int:
        """Return the sum of Envoy's counters or gauges whose names match a pattern."""
        return stat(f"http://{HERE}:{self._admin_port}", name)

    def _start(self, child: Child, port: int) -> None:
        child.start()
        child.wait_ready(lambda: listens(port), PATIENCE_S)

    def _translation(self) -> Child:
        objects, self._proxy = in_a_cluster(self._manifests, self._services, self.port)
        path = _written(objects, self._folder / "objects.yaml")
        command = [str(program()), "serve", f"{HERE}:{self._xds_port}", str(path)]
        return Child("istio_files", command, self._log, self._settings)

    def _bootstrap(self) -> Manifest:
        namespace = self._proxy.namespace
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        http2 = {
            "@type": f"type.googleapis.com/{options}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        endpoint = {"endpoint": {"address": _address(self._xds_port)}}
        control = {
            "name": "xds",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {options: http2},
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{"lb_endpoints": [endpoint]}],
            },
        }
        from_control = {"ads": {}, "resource_api_version": "V3"}
        name = f"gateway.{namespace}"
        return {
            "node": {
                "id": f"router~{POD}~{name}~{namespace}.svc.cluster.local",
                "cluster": name,
                "metadata": {
                    "NAMESPACE": namespace,
                    "CLUSTER_ID": "Kubernetes",
                    "ISTIO_VERSION": "1.31.0",
                    "LABELS": dict(self._proxy.labels),
                },
            },
            "admin": {"address": _address(self._admin_port)},
            "dynamic_resources": {
                "lds_config": from_control,
                "cds_config": from_control,
                "ads_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
            },
            "static_resources": {"clusters": [control]},
        }


_COMPLAINTS = ("the patches did not take effect", "ACK ERROR")


def _address(port: int) -> Manifest:
    return {"socket_address": {"address": HERE, "port_value": port}}


def _written(objects: Sequence[Manifest], path: Path) -> Path:
    path.write_text(yaml.safe_dump_all(objects))
    return path
