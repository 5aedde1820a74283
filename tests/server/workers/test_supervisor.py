"""Several real worker processes with one configuration."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from extproc.address import Address
from extproc.server.workers.worker import Worker
from extproc.wire import router_pb2 as pb

PROJECT = Path(__file__).parents[3]
LIMIT_S = 120.0
TEXT = "31415926535 8979 " * 100
BODY = json.dumps(
    {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 5}
).encode()


def adjacent_ports() -> int:
    """Return the first of two adjacent ports that are both free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return value


class Supervised:
    """``extproc serve`` with several workers, as a child process."""

    def __init__(self, directory: Path, listen: str, **more: Any) -> None:
        self.admin_port = adjacent_ports()
        self.listen = listen
        self.config = directory / "extproc.yaml"
        self.document: dict[str, Any] = {
            "server": {
                "listen": listen,
                "admin": f"127.0.0.1:{self.admin_port}",
                "workers": 2,
                "transport": "native",
                "lame_duck_s": 0,
            },
            "state": {"interval_s": 0.1},
        } | more
        self.config.write_text(yaml.safe_dump(self.document))
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "extproc", "serve", "--config", self.config],
                cwd=PROJECT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(PROJECT),
                    "TMPDIR": str(directory),
                },
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.get("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        # A worker that is killed may have accepted the connection.
        report: dict[str, Any] = json.loads(eventually(lambda: self.get("/status")[1]))
        return report

    def metric(self, name: str) -> float:
        """Return the sum of all samples of a metric."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics")[1].splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        )

    def ask(self, worker: int, method: str, message: bytes) -> bytes:
        with grpc.insecure_channel(
            str(Address.parse(self.listen).nth(worker))
        ) as channel:
            call = channel.unary_unary(f"/tokenbudget.v1.Router/{method}")
            answer: bytes = call(message, timeout=LIMIT_S)
            return answer

    def decide(self, worker: int) -> pb.DecideResponse:
        asked = pb.DecideRequest(body=BODY).SerializeToString()
        return pb.DecideResponse.FromString(self.ask(worker, "Decide", asked))

    def observe(self, worker: int, decision: bytes, prompt_tokens: int) -> None:
        report = pb.ObserveRequest(
            decision=decision, status=200, prompt_tokens=prompt_tokens
        )
        self.ask(worker, "Observe", report.SerializeToString())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as started:

        def begin(listen: str, **more: Any) -> Supervised:
            supervised = Supervised(tmp_path, listen, **more)
            started.callback(supervised.stop)
            return supervised

        yield begin


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie counts as not running."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


def test_two_workers_serve_as_one(start: Start, tmp_path: Path) -> None:
    served = start(f"127.0.0.1:{adjacent_ports()}")
    eventually(lambda: served.ready)

    # The ports of both workers respond, and the requests to both are counted.
    for worker, times in ((0, 3), (1, 2)):
        for _ in range(times):
            assert served.decide(worker).pool == "short"
    assert served.metric("extproc_decisions_total") == 5
    report = served.status()
    assert [each["decisions"] for each in report["workers"]] == [3, 2]
    assert report["decisions"] == 5
    assert report["ready"]

    # Workers share learned state without any configuration.
    before = served.decide(1).prompt_tokens
    for _ in range(20):
        served.observe(0, served.decide(0).decision, before // 2)
    eventually(lambda: served.decide(1).prompt_tokens < 0.8 * before)

    # The page and the requests that it sends succeed.
    assert served.get("/")[0] == 200
    assert served.get("/nothing")[0] == 404

    # A killed worker restarts with the learned state, and its counts are kept.
    counted = served.metric("extproc_decisions_total")
    killed = served.status()["workers"][1]["pid"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: served.status()["workers"][1]["pid"] != killed)
    assert served.metric("extproc_decisions_total") >= counted
    eventually(lambda: served.ready)
    assert served.decide(1).prompt_tokens < 0.8 * before
    assert served.metric("extproc_decisions_total") == counted + 1
    assert served.metric("extproc_worker_restarts_total") == 1
    assert [each["restarts"] for each in served.status()["workers"]] == [0, 1]

    # A reload reaches both workers.
    served.document["mode"] = "shadow"
    served.config.write_text(yaml.safe_dump(served.document))
    served.process.send_signal(signal.SIGHUP)
    eventually(lambda: served.metric("extproc_config_reload_total") >= 2)
    assert served.status()["mode"] == "shadow"

    # SIGTERM stops both workers.
    pids = [each["pid"] for each in served.status()["workers"]]
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(LIMIT_S) == 0
    assert not any(map(is_alive, pids))
    assert list(tmp_path.glob("extproc-*")) == []


def test_a_conversation_is_known_to_every_worker(start: Start) -> None:
    served = start(
        f"127.0.0.1:{adjacent_ports()}",
        feedback={"sample": "all"},
        state={"interval_s": 3600},  # no other way to share learned state
    )
    eventually(lambda: served.ready)
    counted = round(0.9 * served.decide(1).prompt_tokens)
    served.observe(0, served.decide(0).decision, counted)
    assert served.decide(1).prompt_tokens == counted

    # A restarted worker adopts the new configuration as well.
    killed = served.status()["workers"][1]["pid"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: served.status()["workers"][1]["pid"] != killed)
    eventually(lambda: served.ready)
    assert served.decide(1).prompt_tokens == counted


def test_workers_do_not_outlive_their_supervisor(start: Start, tmp_path: Path) -> None:
    served = start(f"unix:{tmp_path / 'grpc.sock'}")
    eventually(lambda: served.ready)
    assert (tmp_path / "grpc.sock.0").is_socket()
    assert served.decide(1).pool == "short"
    pids = [each["pid"] for each in served.status()["workers"]]
    assert all(map(is_alive, pids))

    served.process.kill()

    eventually(lambda: not any(map(is_alive, pids)))


def test_a_worker_that_cannot_start_ends_all(start: Start) -> None:
    port = adjacent_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        served = start(f"127.0.0.1:{port}")

        assert served.process.wait(LIMIT_S) == 1
    assert "server.listen" in served.log.read_text()


def test_a_worker_is_told_which_it_is(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 7)

    assert Worker.at(Path(str(worker))) == worker
