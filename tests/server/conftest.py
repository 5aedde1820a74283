"""Fixtures: a real Redis (if installed), both event loops, and a TLS certificate."""

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.server.transport.native import new_event_loop

from ..patience import wait_until
from .native_server import TIMEOUT_S

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": new_event_loop}


@pytest.fixture(autouse=True)
def _collect_channels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Free the channels and servers of gRPC's library after the test that made them.

    The garbage collector may free a channel before its calls, and the library then waits
    forever. It happens if a later collection finds the objects of many tests together.
    """
    yield
    if hasattr(request.module, "grpc"):
        gc.collect()


class RedisServer:
    """``redis-server`` on a Unix socket, which tests can stop and restart."""

    def __init__(self, directory):
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [
            *("redis-server", "--port", "0", "--unixsocket", str(self.socket)),
            *("--dir", str(directory), "--save", "", "--appendonly", "no"),
        ]
        self._process: Any = None

    def start(self):
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens)

    def stop(self):
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)

    def _listens(self):
        # The file of the socket exists before the server listens.
        assert self._process.poll() is None, "redis-server ended"
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.socket))
            return True
        return False


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
    """Return a function that runs a coroutine; tests run on asyncio and on uvloop."""

    def run(test: Coroutine) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(test, TIMEOUT_S))

    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """Return a file with a key and a certificate for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls")
    key, cert = path / "key.pem", path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    both = path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    """Return the TLS context of a server at localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
