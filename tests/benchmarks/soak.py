"""Run hours of mixed load, and compare the router's resources over time.

    python tests/benchmarks/soak.py [--seconds 3600] [--transport grpcio|native]

The load goes through a real Envoy and has connections, JSON responses, streams, clients
that disconnect, invalid bodies, 100 models, reloads and stored state. The program
prints the router's memory, file descriptors, threads, asyncio tasks and open exchanges.
It exits with status 1 if these have grown from the second and third fifth of the run to
the last two. The router learns all models before the first fifth, so that their state
exists, and the allocator settles during the first fifth.
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
from statistics import median
from typing import Any

import yaml

from extproc.demo.stack.envoy_config import find_config
from extproc.demo.stack.stack import Stack, running, stand_in

CLIENTS = 6
MODELS = 100
"""Number of models, above the 64 that the router learns separately, to use all 64."""
RELOAD_S = 5.0
QUIET_S = 60.0
"""Time limit in seconds for open requests to end after the clients have stopped."""
JSON = {"content-type": "application/json"}
ALLOWED_GROWTH = {
    "rss_mib": 1.02,
    "malloc_mib": 1.02,
    "kblocks": 1.02,
    "fds": 1.0,
    "threads": 1.0,
    "tasks": 1.0,
}
"""Allowed growth as a factor; ``SLACK`` is added for short-lived resources."""
SLACK = {
    "rss_mib": 2.0,
    "malloc_mib": 1.0,
    "kblocks": 2.0,
    "fds": 8.0,
    "threads": 2.0,
    "tasks": 16.0,
}


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


class Load:
    """Clients of every kind that run until they are stopped."""

    def __init__(self, port: int, pause_s: float) -> None:
        self._port = port
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(random.Random(n),), daemon=True)
            for n in range(CLIENTS)
        ]
        self.requests = 0
        self.failed: list[str] = []

    def __enter__(self) -> "Load":
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

def say(*_):
    import asyncio
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        return  # no loop is running yet
    found = mallinfo()
    used = found.uordblks + found.hblkhd
    blocks = sys.getallocatedblocks()
    print("counted", tasks, used, blocks, file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, say)
"""
"""``sitecustomize`` of the child processes, which lets a test query their resources.

On request a process reports its number of tasks and its allocated memory.
"""


def sample(stack: Stack, began_s: float, requests: int) -> Sample:
    child = stack.router.child
    os.kill(child.pid, signal.SIGUSR1)
    proc = Path(f"/proc/{child.pid}")
    status = (proc / "status").read_text()
    rss_kib, threads = (
        int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])  # type: ignore[index]
        for name in ("VmRSS", "Threads")
    )
    with urllib.request.urlopen(f"{stack.router.admin_url}/metrics") as response:
        metrics = response.read().decode()
    exchanges = re.search(r"^extproc_streams_inflight (\S+)", metrics, re.M)
    counted = re.findall(r"^counted (\d+) (\d+) (\d+)$", child.log.read_text(), re.M)
    tasks, malloc_bytes, blocks = map(int, counted[-1] if counted else (0, 0, 0))
    return Sample(
        time.monotonic() - began_s,
        requests,
        rss_kib / 1024,
        malloc_bytes / (1 << 20),
        blocks / 1000,
        len(list((proc / "fd").iterdir())),
        threads,
        tasks,
        int(float(exchanges[1])) if exchanges else 0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--transport", default="native")
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
        "state": {"store": "directory", "path": str(directory / "state")},
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
        load = Load(stack.envoy.port, args.pause)
        load.warm_up()
        samples = run(stack, load, directory / "extproc.yaml", config, args.seconds)
        # The clients have stopped, so their resources must be freed.
        deadline = time.monotonic() + QUIET_S
        while True:
            after = sample(stack, samples[0].seconds, samples[-1].requests)
            if not after.exchanges or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        samples.append(after)
    return judge(samples, load.failed)


def run(
    stack: Stack, load: Load, path: Path, config: dict[str, Any], seconds: float
) -> list[Sample]:
    began_s = time.monotonic()
    samples: list[Sample] = []
    reloads = 0
    print(" ".join(f"{field.name:>10}" for field in fields(Sample)))
    with load:
        while time.monotonic() - began_s < seconds:
            time.sleep(min(RELOAD_S, seconds / 25))
            # Take the sample before the next reload, because an old and a new router
            # exist during a reload.
            samples.append(sample(stack, began_s, load.requests))
            reloads += 1
            threshold = 4096 + reloads % 2
            short = {"name": "short", "max_model_len": 8192}
            config["pools"] = [
                short | {"threshold_tokens": threshold},
                {"name": "long", "max_model_len": 65536},
            ]
            path.write_text(yaml.safe_dump(config))
            os.kill(stack.router.child.pid, signal.SIGHUP)
            if len(samples) % max(1, int(seconds / RELOAD_S / 25)) == 0:
                row = (f"{value:>10.1f}" for value in astuple(samples[-1]))
                print(" ".join(row), flush=True)
    return samples


def judge(samples: list[Sample], failed: list[str]) -> int:
    *during, after = samples
    fifth = max(1, len(during) // 5)
    grown = []
    for name, allowed in ALLOWED_GROWTH.items():
        # During a reload, both the old and the new models exist, and new models without
        # requests are smaller, so memory is judged by the median sample. Other
        # resources are judged by the minimum sample, because a large body may be
        # present in one sample, but a leak is present in all samples.
        of_samples = median if name in ("rss_mib", "malloc_mib") else min
        before = of_samples(getattr(s, name) for s in during[fifth : 3 * fifth])
        at_end = of_samples(getattr(s, name) for s in during[-2 * fifth :])
        alone = getattr(after, name)
        print(f"{name}: {before:.1f} -> {at_end:.1f}, without clients {alone:.1f}")
        if name == "malloc_mib":
            # If clients are slower than before, larger bodies are in flight. After the
            # clients have stopped, only a leak remains.
            at_end = min(at_end, alone)
        if at_end > allowed * before + SLACK[name]:
            grown.append(name)
    print(f"open exchanges without clients: {after.exchanges}")
    print(f"requests: {after.requests}, failed: {len(failed)} {failed[:3]}")
    if grown:
        print(f"grown: {', '.join(grown)}")
    return 1 if grown or failed or after.exchanges else 0


if __name__ == "__main__":
    sys.exit(main())
