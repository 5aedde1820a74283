"""Setup of the fault tests: routers behind an Envoy, and the services around them."""

import http.server
import json
import shutil
import subprocess
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.process import Child
from extproc.demo.stack.stack import Envoy, Router

from ..patience import PATIENCE_S, wait_until
from .load import Answer, Load


@dataclass
class Rig:
    """Routers behind their own Envoy."""

    envoy: Envoy
    routers: list[Router]
    expected: dict[str, Answer]
    directory: Path

    @property
    def router(self) -> Router:
        return self.routers[0]

    def load(self) -> Load:
        return Load(self.envoy.port, self.expected)

    def wait_routing(self) -> None:
        """Wait until Envoy uses all routers."""
        count = len(self.routers)
        wait_until(lambda: self.envoy.healthy_endpoints("extproc") == count)

    def log(self) -> str:
        return self.router.child.log.read_text()

    def metric(self, name: str) -> float:
        lines = [line for line in self.scrape() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def has_metric(self, name: str) -> bool:
        return any(line.startswith(name) for line in self.scrape())

    def scrape(self) -> list[str]:
        url = f"{self.router.admin_url}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            return response.read().decode().splitlines()


def with_port(endpoint: dict[str, Any], port: int) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(endpoint))
    copied["endpoint"]["address"]["socket_address"]["port_value"] = port
    return copied


class FakeVllm(http.server.BaseHTTPRequestHandler):
    """A server that returns the metrics of vLLM, or returns no metrics."""

    metrics = True

    def do_GET(self) -> None:
        text = (
            b"vllm:num_requests_waiting 0\nvllm:num_requests_running 0\n"
            b"vllm:kv_cache_usage_perc 0\n"
        )
        found = self.path == "/health" or (
            self.path == "/metrics" and type(self).metrics
        )
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(text if found else b"")

    def log_message(self, *args: object) -> None:
        pass


CLOCK = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The wall clock, so many seconds off as the file CLOCK_OFFSET says. */
int clock_gettime(clockid_t clock, struct timespec *now) {
  long status = syscall(SYS_clock_gettime, clock, now);
  if (status == 0 && clock == CLOCK_REALTIME) {
    FILE *file = fopen(getenv("CLOCK_OFFSET"), "r");
    long offset = 0;
    if (file != NULL) {
      if (fscanf(file, "%ld", &offset) != 1) offset = 0;
      fclose(file);
    }
    now->tv_sec += offset;
  }
  return (int)status;
}
"""


@dataclass
class Crowded:
    """A router with every optional dependency.

    The dependencies are a store, servers that report their load, and an adjustable wall
    clock.
    """

    redis: Child
    redis_port: int
    clock: Path | None
    vllm: http.server.ThreadingHTTPServer | None = None
    vllm_port: int = 0
    rig: Rig = field(init=False)

    def start_vllm(self) -> None:
        address = ("127.0.0.1", self.vllm_port)
        self.vllm = http.server.ThreadingHTTPServer(address, FakeVllm)
        self.vllm_port = self.vllm.server_address[1]
        threading.Thread(target=self.vllm.serve_forever, daemon=True).start()

    def stop_vllm(self) -> None:
        if self.vllm is not None:
            self.vllm.shutdown()
            self.vllm.server_close()
            self.vllm = None

    def stored(self) -> str:
        key = "token-budget-router:learned.v2.json"
        command = ["redis-cli", "-p", str(self.redis_port), "get", key]
        return subprocess.run(command, capture_output=True, text=True).stdout


def make_clock(directory: Path, environment: pytest.MonkeyPatch) -> Path | None:
    """Give all processes that start from now on an adjustable clock."""
    if shutil.which("cc") is None:
        return None
    source, library, offset = (directory / n for n in ("c.c", "clock.so", "offset"))
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    offset.write_text("0")
    environment.setenv("CLOCK_OFFSET", str(offset))
    environment.setenv("LD_PRELOAD", str(library))
    return offset
