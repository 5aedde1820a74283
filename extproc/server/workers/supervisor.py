"""Supervises the processes of ``server.workers``; each is an endpoint for Envoy.

Python runs one thread at a time, so more processes are needed to use more cores. The
supervisor makes no decisions: it starts the workers, restarts workers that end,
forwards signals, and serves one admin port for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from extproc.address import Address
from extproc.config import Config
from extproc.server.workers.admin import WorkersAdmin
from extproc.server.workers.worker import Worker

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
_STEADY_S = 10.0
"""Seconds of uptime after which a worker's end does not count as a failed start."""

_GRACE_S = 10.0
"""Seconds to wait beyond the worker's configured shutdown time."""


class WorkerProcess:
    """A worker process, which is restarted whenever it ends.

    Args:
        worker: the worker's index and directory.
        command: command line of the worker, which runs until its standard input ends.
        admin: counts the restarts and checks readiness.
        environment: environment variables; None for the variables of the parent
            process.
    """

    def __init__(
        self,
        worker: Worker,
        command: Sequence[str],
        admin: WorkersAdmin,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._worker = worker
        self._command = command
        self._admin = admin
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        """Set when the worker is ready for the first time, and never cleared."""

    async def keep(self) -> int:
        """Run the worker until ``stop``, or until it ends before it was first ready.

        Returns:
            0, or the exit status of a worker that could not start. Such a worker is not
            restarted, because it would fail again with the same configuration and
            address.
        """
        delay_s = _FIRST_DELAY_S
        while True:
            status, lived_s = await self._run_once()
            if self._stopping.is_set():
                return 0
            if not self.ready.is_set():
                return status if status > 0 else 1
            delay_s = _next_delay(delay_s, lived_s)
            _log_ended(self._worker.index, status, delay_s)
            if await _is_set_within(self._stopping, delay_s):
                return 0
            self._admin.restarted(self._worker.index)

    async def _run_once(self) -> tuple[int, float]:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, env=self._environment
        )
        self._admin.started(self._worker.index, process.pid)
        if self._stopping.is_set():  # stopped while it was starting
            process.terminate()
        asking = asyncio.create_task(self._note_ready())
        status = await process.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return status, clock() - began_s

    async def _note_ready(self) -> None:
        if not self.ready.is_set():
            await self._admin.until_ready(self._worker.index)
            self.ready.set()

    def stop(self) -> None:
        """Drain the worker and do not restart it."""
        self._stopping.set()
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Forward a signal to the worker if the worker is running."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class Supervisor:
    """All workers of one configuration.

    Args:
        config: the parsed configuration; each worker parses the file again.
        path: file of the configuration; None for the defaults.
    """

    def __init__(self, config: Config, path: Path | None) -> None:
        self._config = config
        self._path = path
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run the workers until SIGTERM or SIGINT, then drain them.

        Returns:
            0, or the exit status of a worker that could not start.
        """
        server = self._config.server
        with tempfile.TemporaryDirectory(prefix="extproc-") as directory:
            workers = [Worker(Path(directory), i) for i in range(server.workers)]
            admin = WorkersAdmin(server, workers, self._stopping.is_set)
            environment = _with_one_hash_secret(os.environ)
            keepers = [
                WorkerProcess(each, self._command(each), admin, environment)
                for each in workers
            ]
            self._handle_signals(keepers)
            await self._start_admin(admin)
            try:
                return await self._keep(keepers)
            finally:
                await admin.stop()
                _log("stopped")

    def _command(self, worker: Worker) -> list[str]:
        command = [sys.executable, "-m", "extproc", "serve", "--worker", str(worker)]
        return (
            command if self._path is None else [*command, "--config", str(self._path)]
        )

    def _handle_signals(self, keepers: Sequence[WorkerProcess]) -> None:
        def reload() -> None:
            for keeper in keepers:
                keeper.send(signal.SIGHUP)

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def _start_admin(self, admin: WorkersAdmin) -> None:
        try:
            _log("admin", admin=await admin.start())
        except OSError as error:
            # As in a single process, requests matter more than their metrics: continue
            # without the admin port.
            fields = {
                "admin": self._config.server.admin,
                "error": error.strerror or str(error),
            }
            logger.error("admin_unavailable", extra={"fields": fields})

    async def _keep(self, keepers: Sequence[WorkerProcess]) -> int:
        server = self._config.server
        kept = [asyncio.create_task(keeper.keep()) for keeper in keepers]
        others = [
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self._tell_when_ready(keepers)),
        ]
        await asyncio.wait([*kept, others[0]], return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        grace_s = server.lame_duck_s + server.drain_timeout_s + _GRACE_S
        _log("draining", timeout_s=server.drain_timeout_s)
        for keeper in keepers:
            keeper.stop()
        _, late = await asyncio.wait(kept, timeout=grace_s)
        if late:
            logger.error("workers_killed", extra={"fields": {"workers": len(late)}})
            for keeper in keepers:
                keeper.send(signal.SIGKILL)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return max(await asyncio.gather(*kept))

    async def _tell_when_ready(self, keepers: Sequence[WorkerProcess]) -> None:
        for keeper in keepers:
            await keeper.ready.wait()
        server = self._config.server
        first = Address.parse(server.listen)
        listen = ", ".join(str(first.nth(i)) for i in range(server.workers))
        _log("all_serving", listen=listen, workers=server.workers)


def _with_one_hash_secret(environment: Mapping[str, str]) -> dict[str, str]:
    """Give all workers the same secret seed for Python's hash of a conversation.

    Without the variable PYTHONHASHSEED, each Python process draws a random seed.
    """
    name = "PYTHONHASHSEED"
    seed = environment.get(name) or "random"
    if seed == "random":
        seed = str(secrets.randbelow(1 << 32))
    return {**environment, name: seed}


def _next_delay(delay_s: float, lived_s: float) -> float:
    if lived_s >= _STEADY_S:
        return _FIRST_DELAY_S
    return min(2 * delay_s, _LONGEST_DELAY_S)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _log_ended(index: int, status: int, delay_s: float) -> None:
    fields = {"worker": index, "status": status, "restart_in_s": delay_s}
    logger.error("worker_ended", extra={"fields": fields})


def _log(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})
