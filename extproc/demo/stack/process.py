"""A child process with a readiness check and a reliable stop."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

_POLL_S = 0.05
_LOG_TAIL_LINES = 15

_FIRST_PORT = 10_240
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Linux's default; other systems start at 49,152 or above.
_USUAL_EPHEMERAL_START = 32_768


class ChildError(Exception):
    """A child exited early or was not ready in time; the message names its log."""


class Child:
    """A child process whose output goes to a file.

    The child runs in its own session, so that Ctrl-C does not reach it and the parent
    determines the order in which its children stop.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not exited."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ChildError: the process was never started.
        """
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the process; append its standard output and error to the log."""
        if self.running:
            raise ChildError(f"{self.name} is running already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready()`` returns true.

        Raises:
            ChildError: the process exited, or ``timeout_s`` passed.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise ChildError(f"{self.name} ended before it was ready{self._tail()}")
            if time.monotonic() > deadline:
                raise ChildError(
                    f"{self.name} was not ready within {timeout_s:g} s{self._tail()}"
                )
            time.sleep(_POLL_S)

    def pause(self) -> None:
        """Suspend the process (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the process (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def stop(self, grace_s: float = 5.0) -> int | None:
        """Stop the process and its children; return its exit status.

        The process receives SIGTERM and, after ``grace_s`` seconds, SIGKILL. There is
        no effect if it has exited, or was never started.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            # A suspended process would not handle SIGTERM.
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        status = process.wait()
        # This kills the process's children if they outlive it.
        self._signal(signal.SIGKILL)
        return status

    def wait(self, timeout_s: float) -> int:
        """Wait until the process exits; return its exit status.

        Raises:
            ChildError: the process runs longer than ``timeout_s``, or was never
                started.
        """
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise ChildError(
                f"{self.name} did not end within {timeout_s:g} s{self._tail()}"
            ) from late

    def kill(self) -> None:
        """Kill the process at once (SIGKILL)."""
        self.stop(grace_s=0.0)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "".join(f"\n    {line}" for line in lines) + f"\n  log: {self.log}"


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1, never the same one twice.

    The ports are below the range for outgoing connections. Any client could take a port
    in that range before the port's owner listens on it, which may be a minute later. No
    other process of this program gets the same port while this process runs.
    """
    found: list[int] = []
    candidates = random.SystemRandom()
    while len(found) < count:
        port = candidates.randrange(_FIRST_PORT, _ephemeral_start())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _reservations.enter_context(_reserve(port))
            found.append(port)
    return found


_reservations = contextlib.ExitStack()
"""The reserved sockets, which stay open until this process exits in any way."""
atexit.register(_reservations.close)


def _reserve(port: int) -> socket.socket:
    """Reserve a port by binding the unused UDP port of the same number.

    Raises:
        OSError: another process has reserved it.
    """
    reservation = socket.socket(type=socket.SOCK_DGRAM)
    try:
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        raise
    return reservation


def _ephemeral_start() -> int:
    """Return the first port of the range for outgoing connections."""
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START
    return first if first > 2 * _FIRST_PORT else _USUAL_EPHEMERAL_START


def answers_200(url: str, timeout_s: float = 1.0) -> bool:
    """Return whether a GET of ``url`` returns 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
