"""A real Envoy (one worker) with an ext_proc server behind it and wrk in front of it.

Unless a scenario needs streams, Envoy itself responds, so that only the CPU time of
Envoy and of the server is measured. /proc supplies the CPU time of each process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig_envoy import address, envoy_config

from extproc.demo.stack.envoy_config import find_envoy
from extproc.demo.stack.process import Child, answers_200, free_ports

PEERS = Path(__file__).with_name("rig_peers.py")
BARE, LEAN, GRPCIO, NATIVE = "bare", "lean grpc.aio", "grpcio", "native"

SENTENCE = "the quick brown fox jumps over 13 lazy dogs; "


def chat(characters: int, sentence: str = SENTENCE, **more: Any) -> str:
    """Return a chat request with this much text."""
    text = (sentence * (characters // len(sentence) + 1))[:characters]
    message = {"role": "user", "content": text}
    return json.dumps({"model": "m", "max_tokens": 256, "messages": [message], **more})


def answer(body_bytes: int) -> str:
    """Return a backend's response with a plausible token count."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "lorem " * 40}}
    usage = {"prompt_tokens": body_bytes // 4, "completion_tokens": 48}
    return json.dumps({"id": "1", "choices": [choice], "usage": usage})


@dataclass(frozen=True)
class Scenario:
    """The processes of a scenario and their settings.

    Attributes:
        server: ``BARE``, ``LEAN``, ``GRPCIO`` or ``NATIVE``.
        config: configuration of ``extproc serve``, apart from addresses and transport.
        workers: number of processes of ``extproc serve``.
        backend: if true, a backend responds with an event stream; if false, Envoy
            responds with a JSON body.
    """

    server: str
    config: tuple[tuple[str, str], ...] = ()
    workers: int = 1
    backend: bool = False


@dataclass(frozen=True)
class Load:
    """Results of wrk, and the CPU used by each process."""

    requests: int
    seconds: int
    p50_ms: float
    p99_ms: float
    server_us: float
    """CPU microseconds of the server's processes per request."""
    envoy_us: float
    load_us: float
    messages: float
    """ext_proc messages per request, if the server counts the messages."""

    @property
    def rps(self) -> float:
        return self.requests / self.seconds


class Stack:
    """An Envoy and one server that are running."""

    def __init__(
        self, scenario: Scenario, directory: Path, envoy: Child, server: Child | None,
        port: int, server_admin: int,
    ) -> None:  # fmt: skip
        self.scenario = scenario
        self.port = port
        self._directory = directory
        self._envoy = envoy
        self._server = server
        self._server_admin = server_admin

    def load(self, body: str, connections: int, seconds: int) -> Load:
        """Send a body repeatedly."""
        wrk = self.start_load(body, connections, seconds)
        before = self._spent()
        out = wrk.finish()
        spent = [
            late - early for late, early in zip(self._spent(), before, strict=True)
        ]
        assert wrk.requests, out
        each = [amount / wrk.requests for amount in spent]
        return Load(
            requests=wrk.requests,
            seconds=seconds,
            p50_ms=quantile_ms(out, 50),
            p99_ms=quantile_ms(out, 99),
            server_us=1e6 * each[0],
            envoy_us=1e6 * each[1],
            load_us=1e6 * wrk.cpu_s / wrk.requests,
            messages=each[2],
        )

    def warm(self, body: str, connections: int, seconds: int = 1) -> None:
        """Send a body for some seconds, to warm up connections, caches and models."""
        self.start_load(body, connections, seconds).finish()

    def profile(self, body: str, seconds: int, output: Path) -> None:
        """Record where the server spends its time under load, as a flame graph.

        Raises:
            FileNotFoundError: py-spy is not installed (PyPI: py-spy).
        """
        assert self._server is not None
        options = ["--duration", str(seconds), "--rate", "500"]
        wrk = self.start_load(body, 16, seconds + 2)
        command = ["py-spy", "record", "--pid", str(self._server.pid), *options]
        subprocess.run(
            [*command, "--format", "flamegraph", "--output", str(output)],
            check=True,
            capture_output=True,
        )
        wrk.finish()
        drawn = re.sub(
            r">py-spy record [^<]*<", ">extproc serve, native<", output.read_text()
        )
        output.write_text(drawn)

    def start_load(self, body: str, connections: int, seconds: int) -> Wrk:
        """Start a load without waiting for its end."""
        return Wrk(self._directory, self.port, body, connections, seconds)

    def worker_cpu_s(self) -> list[float]:
        """Return the CPU seconds of each server process, with the parent first."""
        return [cpu_s(pid) for pid in tree(self._server.pid)] if self._server else []

    def _spent(self) -> tuple[float, float, float]:
        return sum(self.worker_cpu_s()), cpu_s(self._envoy.pid), self._messages()

    def _messages(self) -> float:
        if self._server is None or self.scenario.server == LEAN:
            return 0.0
        metrics = get(f"http://127.0.0.1:{self._server_admin}/metrics")
        counts = re.findall(
            r"^extproc_message_seconds_count\{.*\} ([\d.e+]+)$", metrics, re.MULTILINE
        )
        return sum(float(count) for count in counts)


@contextlib.contextmanager
def running(scenario: Scenario, body_bytes: int = 4000) -> Iterator[Stack]:
    """Start Envoy and a server.

    Args:
        body_bytes: size of the requests, from which the response's token count
            follows.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        port, admin, extproc_admin, backend = free_ports(4)
        server, addresses = start_server(scenario, directory, extproc_admin)
        if server is not None:
            stack.enter_context(server)
        if scenario.backend:
            command = [sys.executable, str(PEERS), "--serve-backend", str(backend)]
            stack.enter_context(Child("backend", command, directory / "backend.log"))
        config = envoy_config(
            port,
            admin,
            addresses,
            answer(body_bytes),
            backend if scenario.backend else None,
        )
        (directory / "envoy.json").write_text(json.dumps(config))
        command = [
            find_envoy(),
            "-c",
            str(directory / "envoy.json"),
            "--concurrency",
            "1",
        ]
        command += ["--use-dynamic-base-id", "-l", "error"]
        envoy = stack.enter_context(Child("envoy", command, directory / "envoy.log"))
        envoy.wait_ready(lambda: answers_200(f"http://127.0.0.1:{admin}/ready"), 30)
        if server is not None and scenario.server != LEAN:
            server.wait_ready(
                lambda: answers_200(f"http://127.0.0.1:{extproc_admin}/readyz"), 30
            )
        # This request passes through the server. Envoy answers it with 500 until the
        # server listens.
        envoy.wait_ready(lambda: answers_200(f"http://127.0.0.1:{port}/"), 30)
        yield Stack(scenario, directory, envoy, server, port, extproc_admin)


def start_server(
    scenario: Scenario, directory: Path, admin: int
) -> tuple[Child | None, list[dict[str, Any]]]:
    """Return the server's process, without starting it, and its port."""
    log = directory / "server.log"
    if scenario.server == BARE:
        return None, []
    (port,) = free_ports(1)
    if scenario.server == LEAN:
        command = [sys.executable, str(PEERS), "--serve-lean", str(port)]
        return Child(LEAN, command, log), [address(port)]
    listen, addresses = f"127.0.0.1:{port}", [address(port)]
    if scenario.workers > 1:
        listen = f"unix:{directory}/extproc"
        addresses = [
            {"pipe": {"path": f"{directory}/extproc.{index}"}}
            for index in range(scenario.workers)
        ]
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in scenario.config:
        section, key = dotted.split(".")
        sections.setdefault(section, {})[key] = json.loads(value)
    sections.setdefault("server", {}).update(
        listen=listen,
        admin=f"127.0.0.1:{admin}",
        transport=scenario.server,
        workers=scenario.workers,
    )
    (directory / "extproc.yaml").write_text(json.dumps(sections))
    command = [sys.executable, "-m", "extproc", "serve"]
    command += ["--config", str(directory / "extproc.yaml")]
    return Child(scenario.server, command, log), addresses


class Wrk:
    """A wrk process that is running."""

    def __init__(
        self, directory: Path, port: int, body: str, connections: int, seconds: int
    ) -> None:
        script = directory / f"post{connections}-{len(body)}.lua"
        script.write_text(
            'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\n'
            f"wrk.body=[==[{body}]==]\n"
        )
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        options = [
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "--timeout",
            "30s",
        ]
        self._process = subprocess.Popen(
            ["wrk", "-t1", *options, "-s", str(script), url],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.requests = 0
        self.cpu_s = 0.0

    def finish(self) -> str:
        """Wait for the end of wrk, and return its output."""
        assert self._process.stdout is not None
        out = self._process.stdout.read()
        self.cpu_s = cpu_s(self._process.pid)  # readable only before ``wait``
        status = self._process.wait()
        assert status == 0, out
        assert "Non-2xx" not in out, out
        assert "Socket errors" not in out, out
        found = re.search(r"(\d+) requests in", out)
        assert found, out
        self.requests = int(found[1])
        return out


def quantile_ms(out: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", out, re.MULTILINE)
    assert found, out
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found[2]]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def get(url: str) -> str:
    from urllib.request import urlopen

    with urlopen(url, timeout=10) as response:
        return str(response.read().decode())
