"""Run hours of mixed load, and compare the router's resources over time.

    python tests/benchmarks/soak.py [--seconds 3600] [--transport native|grpcio]

The load goes through a real Envoy and has connections, JSON responses, streams, clients
that disconnect, invalid bodies, 100 models, reloads and stored state. The program
prints the router's memory, file descriptors, threads, asyncio tasks and open exchanges.

The program samples the router **at rest** after a quarter of the run, at the earliest
after 2,500 requests, and again at the end: a reload, one round of requests to all
models, then no clients and a full garbage collection. What is allocated then is what
the router keeps. The program exits with status 1 if that has grown. The samples under
load are only printed, because they depend on the bodies in flight.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from extproc.demo.stack.envoy_config import find_config
from extproc.demo.stack.stack import Stack, running, stand_in

CLIENTS = 6
MODELS = 100
"""Number of models, above the 64 that the router learns separately, to use all 64."""
FILLED = 2500
"""Number of requests that fill every bounded record of recent ones; the largest has the
last 2,048 streams that the router reset. The page's intervals fill in 15 minutes, a
quarter of the default run."""
RELOAD_S = 5.0
QUIET_S = 60.0
"""Time limit in seconds for open requests to end after the clients have stopped, and
for the router to reload or to report."""
JSON = {"content-type": "application/json"}
SAVE_S = 2.0
RESTING = 12
"""Number of samples at rest, 0.5 s apart, so that two saves of the state are among
them: the first frees what earlier requests left."""
ALLOWED_GROWTH = {
    "rss_mib": 80.0,
    "malloc_mib": 8.0,
    "kblocks": 2.0,
    "fds": 0.0,
    "threads": 2.0,
    "tasks": 2.0,
    "exchanges": 0.0,
}
"""Allowed growth between the two samples at rest, in the unit of each resource.

A leaked Python object adds at least one block, so ``kblocks`` notices a leak of one
object in every second request within 20 seconds. The C library's memory varies by the
working arrays of the 64 models. The resident memory also has what the allocator has not
returned to the system, in areas of up to 64 MiB for each thread. The server's thread
pool and its periodic tasks may start between the two samples.
"""


@dataclass(frozen=True)
class Sample:
    """The resources of the router at one moment."""

    seconds: float
    requests: int
    rss_mib: float
    malloc_mib: float
    """MiB that the C library has allocated and not freed.

    A leak appears here long before it appears in the resident memory.
    """
    kblocks: float
    """Thousands of small blocks that Python's own allocator, not the C library, holds.
    """
    fds: int
    threads: int
    tasks: int
    exchanges: int

    def __str__(self) -> str:
        return " ".join(f"{value:>10.1f}" for value in astuple(self))


class Load:
    """Clients of every kind that run until they are stopped."""

    def __init__(self, port: int, pause_s: float) -> None:
        self._port = port
        self._pause_s = pause_s
        self._random = [random.Random(client) for client in range(CLIENTS)]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.requests = 0
        self.failed: list[str] = []

    def __enter__(self) -> "Load":
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._send, args=(each,), daemon=True)
            for each in self._random
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def warm_up(self) -> None:
        """Let the router learn every model in turn, with bodies of every size."""
        for kind in ("json", "stream", "long", "json"):
            for model in range(MODELS):
                self._exchange(kind, model, random.Random(model))

    def _send(self, random_: random.Random) -> None:
        while not self._stopping.wait(self._pause_s):
            kind = random_.choice(("json", "json", "stream", "cancel", "long", "junk"))
            try:
                self._exchange(kind, random_.randrange(MODELS), random_)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{kind}: {error!r}")
            self.requests += 1

    def _exchange(self, kind: str, model: int, random_: random.Random) -> None:
        words = random_.randrange(1, 60) if kind != "long" else 4000
        body: Any = {
            "model": f"model-{model}",
            "messages": [{"role": "user", "content": "word " * words}],
            "max_tokens": 400 if kind == "cancel" else 8,
            "ignore_eos": True,
            "stream": kind in ("stream", "cancel"),
        }
        data = random_.randbytes(500) if kind == "junk" else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", data, JSON)
            response = connection.getresponse()
            if kind == "cancel":
                response.readline()
                return
            answer = response.read()
        expected = 400 if kind == "junk" else 200
        if response.status != expected:
            raise http.client.HTTPException(f"{response.status} {answer[:100]!r}")
        if kind == "stream" and not answer.endswith(b"data: [DONE]\n\n"):
            raise http.client.HTTPException("the stream has no end")


COUNT = """\
import ctypes, signal, sys

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

mallinfo = ctypes.CDLL(None).mallinfo2  # glibc 2.33
mallinfo.restype = MallInfo

def say(number, _):
    import asyncio, gc
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        return  # no loop is running yet
    if number == signal.SIGUSR2:
        gc.collect()
    found = mallinfo()
    used = found.uordblks + found.hblkhd
    blocks = sys.getallocatedblocks()
    print("counted", tasks, used, blocks, file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, say)
signal.signal(signal.SIGUSR2, say)
"""
"""``sitecustomize`` of the child processes, which lets a test query their resources.

On SIGUSR1 a process reports its number of tasks and its allocated memory. On SIGUSR2 it
collects garbage before.
"""
COUNTED = re.compile(r"^counted (\d+) (\d+) (\d+)$", re.M)


class Watched:
    """The router's process, with the resources that it reports."""

    def __init__(self, stack: Stack, path: Path, config: dict[str, Any]) -> None:
        self._stack = stack
        self._path = path
        self._config = config
        self._began_s = time.monotonic()
        self.reloads = 0

    def reload(self) -> None:
        """Change the short pool's threshold, and wait until the router applies it."""
        self.reloads += 1
        short = {"name": "short", "max_model_len": 8192}
        self._config["pools"] = [
            short | {"threshold_tokens": 4096 + self.reloads % 2},
            {"name": "long", "max_model_len": 65536},
        ]
        self._path.write_text(yaml.safe_dump(self._config))
        child = self._stack.router.child
        os.kill(child.pid, signal.SIGHUP)
        child.wait_ready(
            lambda: (
                self._metric('extproc_config_reload_total{result="ok"}') >= self.reloads
            ),
            QUIET_S,
        )

    def sample(self, requests: int, collect: bool = False) -> Sample:
        """Sample the resources, after a garbage collection if ``collect`` is true."""
        child = self._stack.router.child
        reports = len(COUNTED.findall(child.log.read_text()))
        os.kill(child.pid, signal.SIGUSR2 if collect else signal.SIGUSR1)
        child.wait_ready(
            lambda: len(COUNTED.findall(child.log.read_text())) > reports, QUIET_S
        )
        tasks, malloc_bytes, blocks = map(
            int, COUNTED.findall(child.log.read_text())[-1]
        )
        proc = Path(f"/proc/{child.pid}")
        status = (proc / "status").read_text()
        rss_kib, threads = (
            int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])  # type: ignore[index]
            for name in ("VmRSS", "Threads")
        )
        return Sample(
            time.monotonic() - self._began_s,
            requests,
            rss_kib / 1024,
            malloc_bytes / (1 << 20),
            blocks / 1000,
            len(list((proc / "fd").iterdir())),
            threads,
            tasks,
            int(self._metric("extproc_streams_inflight")),
        )

    def _metric(self, name: str) -> float:
        url = f"{self._stack.router.admin_url}/metrics"
        with urllib.request.urlopen(url) as response:
            metrics = response.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)", metrics, re.M)
        return float(found[1]) if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--transport", choices=("native", "grpcio"), default="native")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.005,
        metavar="SECONDS",
        help=f"between two requests of each of the {CLIENTS} clients",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(Path(folder), args)


def soak(directory: Path, args: argparse.Namespace) -> int:
    config = {
        "server": {"transport": args.transport},
        "feedback": {"sample": "all", "inject_usage": True},
        "state": {
            "store": "directory",
            "path": str(directory / "state"),
            "interval_s": SAVE_S,
        },
    }
    backends = [
        stand_in("short", 8192, 64, directory, speed=50),
        stand_in("long", 65536, 16, directory, speed=50),
    ]
    (directory / "sitecustomize.py").write_text(COUNT)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(directory), os.environ.get("PYTHONPATH", "")]
    )
    with running(directory, backends, config, find_config()) as stack:
        router = Watched(stack, directory / "extproc.yaml", config)
        load = Load(stack.envoy.port, args.pause)
        print(" ".join(f"{field.name:>10}" for field in fields(Sample)))
        load.warm_up()
        run(router, load, args.seconds / 4, FILLED)
        before = at_rest(router, load)
        run(router, load, args.seconds * 3 / 4)
        after = at_rest(router, load)
    return judge(before, after, load)


def run(router: Watched, load: Load, seconds: float, requests: int = 0) -> None:
    """Send load for some seconds, with a reload and a sample at equal intervals.

    Args:
        router: the router to reload and to sample.
        load: the clients.
        seconds: minimum duration.
        requests: minimum number of requests.
    """
    interval_s = min(RELOAD_S, seconds / 5)
    rows = max(1, int(seconds / interval_s / 25))
    with load:
        end = time.monotonic() + seconds
        while time.monotonic() < end or load.requests < requests:
            time.sleep(interval_s)
            # Take the sample before the next reload, because an old and a new router
            # exist during a reload.
            found = router.sample(load.requests)
            router.reload()
            if router.reloads % rows == 0:
                print(found, flush=True)


def at_rest(router: Watched, load: Load) -> Sample:
    """Return what the router keeps while it has no requests.

    Every few seconds the router merges and saves its state, which takes memory for a
    moment, so the result has the minimum of each resource over several samples.
    """
    router.reload()
    load.warm_up()
    found = []
    deadline = time.monotonic() + QUIET_S
    while len(found) < RESTING and time.monotonic() < deadline:
        time.sleep(0.5)
        sampled = router.sample(load.requests, collect=True)
        if not sampled.exchanges:
            found.append(sampled)
    found = found or [sampled]
    least = Sample(*(min(each) for each in zip(*map(astuple, found), strict=True)))
    print(least, "at rest", flush=True)
    return least


def judge(before: Sample, after: Sample, load: Load) -> int:
    grown = [
        name
        for name, allowed in ALLOWED_GROWTH.items()
        if getattr(after, name) > getattr(before, name) + allowed
    ]
    print(f"open exchanges without clients: {after.exchanges}")
    print(f"requests: {load.requests}, failed: {len(load.failed)} {load.failed[:3]}")
    if grown:
        print(f"grown: {', '.join(grown)}")
    return 1 if grown or load.failed or after.exchanges else 0


if __name__ == "__main__":
    sys.exit(main())
