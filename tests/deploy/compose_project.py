"""A copy of the project's compose files, run by a real container engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.process import free_ports

from ..patience import wait_until

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("docker-compose.yaml", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("envoy", "extproc")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
BUILD_TIMEOUT_S = 1200.0

# These other ports avoid conflicts with servers on this machine.
_PORTS = """\
services:
  envoy:
    ports: !override ["127.0.0.1:{envoy}:10000"]
  extproc:
    ports: !override ["127.0.0.1:{admin}:9090"]
"""


def ask_for_an_engine() -> None:
    """Skip the test if there is no container engine or no Compose v2.24 or newer."""
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"`{' '.join(command)}` failed: no container engine here")


class ComposeProject:
    """``docker compose`` in a separate folder, with separate ports."""

    def __init__(self, folder: Path, more: Iterable[str] = ()) -> None:
        self.folder = folder
        self.port, self.admin_port = free_ports(2)
        for name in COPIED:
            shutil.copy(ROOT / name, folder / name)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=NOT_COPIED)
        (folder / "ports.yaml").write_text(
            _PORTS.format(envoy=self.port, admin=self.admin_port)
        )
        self.use(more)

    def use(self, more: Iterable[str]) -> None:
        """Use additional compose files from now on."""
        files = ["docker-compose.yaml", *more, "ports.yaml"]
        self._files = [flag for file in files for flag in ("-f", file)]

    def run(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Run ``docker compose`` and return its output."""
        command = ["env", *(f"{k}={v}" for k, v in environment.items())]
        command += ["docker", "compose", "-p", self.folder.name, *self._files]
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def services(self) -> dict[str, dict[str, Any]]:
        """Return the running containers, keyed by service."""
        lines = self.run("ps", "--format", "json").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return {each["Service"]: each for each in found}

    def wait_healthy(self, service: str) -> None:
        """Wait until a service's health check succeeds."""
        wait_until(lambda: self.services().get(service, {}).get("Health") == "healthy")

    def get(self, url: str) -> str:
        """Fetch a URL from inside the containers' network."""
        program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
        return self.run("exec", "-T", "extproc", "python", "-c", program, url)

    def signal(self, service: str, signal: str, pattern: str = "") -> None:
        """Send a signal to the processes of a service, from outside the container."""
        identifier = self.services()[service]["ID"]
        top = subprocess.check_output(
            ["docker", "top", identifier, "-eo", "pid,args"], text=True
        )
        for line in top.splitlines()[1:]:
            pid, _, arguments = line.strip().partition(" ")
            if pattern in arguments:
                subprocess.run(["kill", f"-{signal}", pid], check=True)
                return
        raise AssertionError(f"no process of {service} has {pattern!r}")
