"""A Deployment's pod without a cluster: its containers run as local processes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.stack.process import Child, answers_200, free_ports

from ..patience import PATIENCE_S, be_patient
from .manifests import Manifest

PORTS = (9002, 9090, 9901, 9902, 10000)
PROGRAMS = {"extproc": [sys.executable, "-m", "extproc"]}


@dataclass
class Pod:
    """The containers of a Deployment's pod, run as local processes.

    The containers use free ports and temporary folders. These replace the original
    ports and folders everywhere in the manifests, so that commands, probes and mounted
    files remain consistent.
    """

    containers: dict[str, Child]
    spec: Manifest
    volumes: dict[str, Path]
    ports: dict[str, int]

    def probe(self, container: str, kind: str) -> bool:
        """Run a probe as kubelet does."""
        (found,) = [c for c in self.spec["containers"] if c["name"] == container]
        probe = found[kind]
        if "grpc" in probe:
            return _serving(probe["grpc"]["port"], probe["grpc"]["service"])
        asked = probe["httpGet"]
        url = f"http://127.0.0.1:{self.ports[asked['port']]}{asked['path']}"
        return answers_200(url, PATIENCE_S)


def project(folder: Path, data: dict[str, str]) -> None:
    """Write a ConfigMap's files as kubelet does: atomically, behind a symbolic link."""
    revision = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    for name, content in data.items():
        (revision / name).write_text(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(revision.name)
    new.replace(folder / "..data")


def _serving(port: int, service: str) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = stub.Check(request, timeout=PATIENCE_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def run_pod(
    manifests: list[Manifest], envoy_program: str, root: Path, started: ExitStack
) -> Pod:
    """Run the pod of a Deployment in these objects until its startup probes pass.

    Args:
        root: an empty folder for the pod's files.
        started: stack that stops all started processes.
    """
    deployment = next(m for m in manifests if m["kind"] == "Deployment")
    maps = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "ConfigMap"}
    text = json.dumps([deployment["spec"]["template"]["spec"], maps])
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(str(port), str(free))
    for folder in ("/etc/extproc", "/etc/envoy", "/run/extproc"):
        text = text.replace(folder, f"{root}{folder}")
    text = text.replace('"/tmp"', f'"{root}/tmp"')
    spec, maps = json.loads(text)
    mounts = {
        mount["name"]: Path(mount["mountPath"])
        for container in spec["containers"]
        for mount in container["volumeMounts"]
    }
    for volume in spec["volumes"]:
        place = mounts[volume["name"]]
        place.mkdir(parents=True)
        if "configMap" in volume:
            project(place, _patient(maps[volume["configMap"]["name"]]["data"]))
    pod = Pod(
        {},
        spec,
        mounts,
        {p["name"]: p["containerPort"] for c in spec["containers"] for p in c["ports"]},
    )
    for container in spec["containers"]:
        child = Child(
            container["name"],
            _command(container, envoy_program),
            root / f"{container['name']}.log",
            {e["name"]: e["value"] for e in container.get("env", [])}
            | ({"TMPDIR": str(mounts["tmp"])} if "tmp" in mounts else {}),
        )
        pod.containers[container["name"]] = started.enter_context(child)
    for name, child in pod.containers.items():
        child.wait_ready(partial(pod.probe, name, "startupProbe"), PATIENCE_S)
    return pod


def _patient(data: dict[str, str]) -> dict[str, str]:
    """Return the files with Envoy's timeouts lengthened for a busy machine."""
    if "envoy.yaml" not in data:
        return data
    config = yaml.safe_load(data["envoy.yaml"])
    be_patient(config)
    return data | {"envoy.yaml": yaml.safe_dump(config)}


def _command(container: Manifest, envoy_program: str) -> Sequence[str]:
    if container["name"] == "envoy":
        # The entry point of the image is Envoy itself.
        return [envoy_program, *container["args"], "--log-level", "warning"]
    program, *arguments = container["command"]
    return [*PROGRAMS[program], *arguments]
