"""A real Redis, where there is one, and the event loops that a server may run on."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine

import pytest

from extproc.server.native import new_event_loop

from .native_server import TIMEOUT_S

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": new_event_loop}


class RedisServer:
    """``redis-server`` on a Unix socket; can be stopped and started again."""

    def __init__(self, directory):
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [
            *("redis-server", "--port", "0", "--unixsocket", str(self.socket)),
            *("--dir", str(directory), "--save", "", "--appendonly", "no"),
        ]
        self._process = None

    def start(self):
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def stop(self):
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)


@pytest.fixture
def redis_server(tmp_path):
    pytest.importorskip("redis", reason="redis-py is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=LOOPS)
def run(request) -> Callable[[Coroutine], None]:
    """Run a test's coroutine on asyncio's loop and on uvloop."""

    def run(test: Coroutine) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(test, TIMEOUT_S))

    return run
