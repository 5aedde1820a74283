"""The server process: assembly from a configuration, start, and drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from extproc.address import Address
from extproc.config import Config
from extproc.routing.mergeable import DecayedSums
from extproc.server.admin.server import AdminServer
from extproc.server.build import build
from extproc.server.learned.document import NAME
from extproc.server.learned.store import DirectoryStore
from extproc.server.learned.sync import StateKeeper
from extproc.server.logs import configure_logging, log_loop_error
from extproc.server.observe.connections import ConnectionMetrics
from extproc.server.reload import ConfigWatch
from extproc.server.runtime import Runtime
from extproc.server.services.access_log import AccessLog, WithAccessLog
from extproc.server.services.decide import Api, WithApi
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.choose import build_transport
from extproc.server.workers.worker import Worker

logger = logging.getLogger(__name__)


_QUIET_S = 0.5
"""Seconds without a new stream after which the server assumes that the proxies have
noticed its coming shutdown."""


class App:
    """One server process.

    Args:
        config: the parsed configuration.
        path: file of the configuration, which is watched for changes; None for the
            defaults.
        worker: identity of this worker process; None for a single process.

    Raises:
        ConfigError: a package that the configuration needs is not installed, or a file
            cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        path: Path | None = None,
        worker: Worker | None = None,
    ) -> None:
        self._path = path
        self._worker = worker
        self._ready = asyncio.Event()
        self._parts = build(config, None if worker is None else worker.directory)
        self._runtime = Runtime(self._parts, self._ready.is_set, _defer, _later)
        self._store = self._parts.store
        if self._store is None and worker is not None:
            self._store = DirectoryStore(worker.state, NAME)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            OSError: the gRPC address cannot be bound.
            ConfigError: a pool's servers differ from the configuration.
        """
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        async with AsyncExitStack() as stack:
            if self._parts.recording is not None:
                stack.callback(self._parts.recording.close)
            if self._parts.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, self._parts.tracing.close)
            stack.push_async_callback(self._runtime.stop)
            await self._runtime.start()
            state = await self._start_state(stack)
            health = HealthStatuses()
            server = self._runtime.in_force.now.config.server
            listen = Address.parse(server.listen)
            if self._worker is not None:
                listen = listen.nth(self._worker.index)
            api = Api(self._runtime.service, server.max_body_bytes)
            service = WithAccessLog(
                WithApi(self._runtime.service, api, self._runtime.service.slices),
                AccessLog(self._runtime.service),
            )
            transport = build_transport(
                server,
                WithHealth(service, health),
                listen,
                ConnectionMetrics(self._runtime.metrics.registry),
            )
            await transport.start()
            health.set_all(True)
            _run_until_stopped(stack, self._runtime.timeline.run())
            await self._start_admin(stack, api)
            stopping = self._handle_signals(stack, state)
            self._ready.set()
            which = {} if self._worker is None else {"worker": self._worker.index}
            _log("serving", listen=str(listen), port=transport.port, **which)
            await stopping.wait()
            self._ready.clear()
            server = self._runtime.in_force.now.config.server
            _log("draining", timeout_s=server.drain_timeout_s)
            health.set_all(False, but=("liveness",))
            await self._until_nobody_asks(server.lame_duck_s)
            await transport.drain(server.drain_timeout_s)
        _log("stopped")

    async def _until_nobody_asks(self, at_most_s: float) -> None:
        """Keep serving until the proxies have noticed the coming shutdown.

        If the server refused streams before that, each refused request would get no
        decision.
        """
        service = self._runtime.service
        deadline_s = asyncio.get_running_loop().time() + at_most_s
        opened = -1
        while opened != service.opened and _time_left(deadline_s) > 0:
            opened = service.opened
            await asyncio.sleep(min(_QUIET_S, _time_left(deadline_s)))

    async def _start_state(self, stack: AsyncExitStack) -> StateKeeper | None:
        if self._store is None:
            return None
        state = StateKeeper(
            self._runtime.learners,
            self._store,
            self._runtime.in_force.now.config.state.interval_s,
            self._runtime.metrics.synced,
        )
        await state.start()
        stack.push_async_callback(state.stop)
        _run_until_stopped(stack, state.run())
        return state

    def _handle_signals(
        self, stack: AsyncExitStack, state: StateKeeper | None
    ) -> asyncio.Event:
        known = _nothing_known if state is None else state.known

        async def apply(config: Config) -> list[str]:
            kept = await self._runtime.replace(config, known)
            configure_logging(config.log)
            return kept

        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        watch = ConfigWatch(self._path, apply, self._runtime.metrics.reloaded)
        loop.add_signal_handler(signal.SIGHUP, watch.ask)
        if self._worker is not None:
            # Standard input ends when the parent process dies.
            loop.add_reader(sys.stdin.fileno(), _end_reading, loop, stopping)
        _run_until_stopped(stack, watch.run())
        return stopping

    async def _start_admin(self, stack: AsyncExitStack, api: Api) -> None:
        config = self._runtime.in_force.now.config
        address = Address.parse(config.server.admin)
        if self._worker is not None:
            address = Address(path=str(self._worker.admin_socket))
        admin = AdminServer(
            address,
            self._runtime.metrics.registry,
            self._ready.is_set,
            self._runtime.status.report,
            self._runtime.explainer,
            config.server.max_body_bytes,
            api if config.api.http else None,
        )
        stack.push_async_callback(admin.stop)
        try:
            _log("admin", admin=await admin.start())
        except OSError as error:
            # Requests matter more than their metrics: continue without the admin port.
            fields = {"admin": str(address), "error": error.strerror or str(error)}
            logger.error("admin_unavailable", extra={"fields": fields})


def _time_left(deadline_s: float) -> float:
    return deadline_s - asyncio.get_running_loop().time()


def _nothing_known(component: str) -> Mapping[str, DecayedSums]:
    return {}


def _defer(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


def _later(seconds: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


def _end_reading(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    loop.remove_reader(sys.stdin.fileno())
    stopping.set()


def _run_until_stopped(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


def _log(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})
