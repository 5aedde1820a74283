"""All processes of the stack: backends, the router and Envoy.

The demo and the end-to-end tests run the same stack.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

import extproc
from extproc.demo.stack.envoy_config import (
    Addresses,
    Config,
    find_envoy,
    load_config,
    relocate,
    with_bypass,
)
from extproc.demo.stack.process import Child, answers_200, free_ports

_HOST = "127.0.0.1"
_READY_S = 60.0
"""Timeout in seconds, enough for a cold start on a busy machine. A start typically
takes two or three seconds."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The only server of a pool: a stand-in or a real vLLM."""

    pool: str
    max_model_len: int
    port: int
    child: Child
    ready_timeout_s: float = _READY_S

    @property
    def url(self) -> str:
        """The backend's base URL, which bypasses Envoy."""
        return f"http://{_HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Wait until the backend is healthy."""
        self.child.wait_ready(
            lambda: answers_200(f"{self.url}/health"), self.ready_timeout_s
        )


def stand_in(
    pool: str,
    max_model_len: int,
    max_num_seqs: int,
    directory: Path,
    *,
    speed: float = 10.0,
    python: str = sys.executable,
) -> Backend:
    """Return a stand-in as a child process, without starting it."""
    (port,) = free_ports(1)
    command = [
        *(python, "-m", "extproc.demo.standin"),
        *("--port", str(port), "--name", pool),
        *("--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)),
        *("--speed", str(speed)),
    ]
    log = directory / f"vllm-{pool}.log"
    child = Child(f"stand-in {pool}", command, log, _same_package())
    return Backend(pool, max_model_len, port, child)


def pair(
    pool: str,
    prefill: Backend,
    decode: Backend,
    directory: Path,
    *,
    as_json: bool = False,
) -> Backend:
    """Return two stand-ins behind one proxy, without starting any of the three.

    Args:
        as_json: whether to label every response as JSON, as vLLM's example proxy does.
    """
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "extproc.demo.standin.pair", "--port", str(port)),
        *("--prefill", prefill.url, "--decode", decode.url),
        *(["--as-json"] if as_json else []),
    ]
    child = Child(f"pair {pool}", command, directory / f"{pool}.log", _same_package())
    return Backend(pool, decode.max_model_len, port, child)


def _same_package() -> dict[str, str]:
    """Return an environment in which a child imports this copy of the package."""
    here = str(Path(extproc.__file__).resolve().parents[1])
    return {"PYTHONPATH": os.pathsep.join([here, *_python_path()])}


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


@dataclass(slots=True)
class Router:
    """``extproc serve`` as a child process."""

    child: Child
    port: int
    admin_port: int

    @property
    def admin_url(self) -> str:
        """Base URL of /metrics, /status and /readyz."""
        return f"http://{_HOST}:{self.admin_port}"

    def wait_ready(self) -> None:
        """Wait until the router reports that it is ready."""
        self.child.wait_ready(lambda: answers_200(f"{self.admin_url}/readyz"), _READY_S)


def router(config: Config | None, directory: Path) -> Router:
    """Return a router process with this configuration, without starting it."""
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "extproc", "serve"]
    if config is not None:
        path = directory / "extproc.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command += ["--config", str(path)]
    environment = {
        **_same_package(),
        "EXTPROC_LISTEN": f"{_HOST}:{port}",
        "EXTPROC_ADMIN": f"{_HOST}:{admin_port}",
    }
    child = Child("extproc", command, directory / "extproc.log", environment)
    return Router(child, port, admin_port)


@dataclass(slots=True)
class Envoy:
    """Envoy as a child process; one of its two listeners bypasses the router."""

    child: Child
    port: int
    bypass_port: int
    admin_port: int
    access_log: Path
    clusters: Sequence[str]

    @property
    def url(self) -> str:
        """URL for clients."""
        return f"http://{_HOST}:{self.port}"

    @property
    def bypass_url(self) -> str:
        """URL of the listener with the same routes, but without the router."""
        return f"http://{_HOST}:{self.bypass_port}"

    def wait_serving(self) -> None:
        """Wait until Envoy accepts requests, whatever the state of its clusters."""
        url = f"http://{_HOST}:{self.admin_port}/ready"
        self.child.wait_ready(lambda: answers_200(url), _READY_S)

    def wait_ready(self) -> None:
        """Wait until Envoy accepts requests and all its clusters are healthy."""
        self.wait_serving()
        self.child.wait_ready(self.all_healthy, _READY_S)

    def all_healthy(self) -> bool:
        """Return whether every cluster has a healthy endpoint."""
        return all(self.healthy_endpoints(name) for name in self.clusters)

    def healthy_endpoints(self, cluster: str) -> int:
        """Return the number of endpoints to which Envoy would route requests."""
        return self.stat(f"cluster.{cluster}.membership_healthy")

    def stat(self, name: str) -> int:
        """Return the value of a counter or gauge; 0 if it does not exist."""
        url = f"http://{_HOST}:{self.admin_port}/stats?format=json&filter=^{name}$"
        with urllib.request.urlopen(url, timeout=30) as response:
            stats = json.load(response)["stats"]
        return next((int(s["value"]) for s in stats if s.get("name") == name), 0)


def envoy(
    source: Path,
    backends: Sequence[Backend],
    router_port: int,
    directory: Path,
    *,
    change: Callable[[Config], None] | None = None,
) -> Envoy:
    """Return Envoy with the configuration ``source`` and this stack's addresses.

    Args:
        change: edits the configuration in place, to test variants.
    """
    port, bypass_port, admin_port = free_ports(3)
    clusters = {f"vllm_{backend.pool}": (_HOST, backend.port) for backend in backends}
    clusters["extproc"] = (_HOST, router_port)
    addresses = Addresses((_HOST, port), (_HOST, admin_port), clusters)
    config = relocate(load_config(source), addresses)
    if change is not None:
        change(config)
    config = with_bypass(config, (_HOST, bypass_port))
    path = directory / "envoy.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    log = directory / "envoy.log"
    command = [
        *(find_envoy(), "--config-path", str(path)),
        # This avoids sharing memory with other Envoys on this machine.
        *("--use-dynamic-base-id", "--concurrency", "1"),
        *("--log-level", "warning", "--log-path", str(directory / "envoy-errors.log")),
        # This flushes the access log at once instead of every 10 s.
        *("--file-flush-interval-msec", "50"),
    ]
    child = Child("envoy", command, log)
    return Envoy(child, port, bypass_port, admin_port, log, list(clusters))


@dataclass(slots=True)
class Stack:
    """The running stack."""

    directory: Path
    backends: Sequence[Backend]
    router: Router
    envoy: Envoy

    def backend(self, pool: str) -> Backend:
        """Return the server of a pool."""
        return next(backend for backend in self.backends if backend.pool == pool)


@contextlib.contextmanager
def running(
    directory: Path,
    backends: Sequence[Backend],
    router_config: Config | None,
    envoy_source: Path,
    *,
    ready: Callable[[], None] = lambda: None,
    change_envoy: Callable[[Config], None] | None = None,
) -> Iterator[Stack]:
    """Start all processes, wait until they are ready, and stop them at the end.

    Envoy starts last, because it would mark a missing router or backend as unhealthy
    until the next probe. ``ready`` is called as each component becomes ready.

    Raises:
        ChildError: a component did not start.
    """
    chosen_router = router(router_config, directory)
    chosen_envoy = envoy(
        envoy_source, backends, chosen_router.port, directory, change=change_envoy
    )
    with contextlib.ExitStack() as started:
        for backend in backends:
            started.enter_context(backend.child)
        started.enter_context(chosen_router.child)
        for backend in backends:
            backend.wait_ready()
            ready()
        chosen_router.wait_ready()
        ready()
        started.enter_context(chosen_envoy.child)
        chosen_envoy.wait_ready()
        ready()
        yield Stack(directory, backends, chosen_router, chosen_envoy)
