"""The server put together from a configuration, and its life from start to drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from extproc.config import Config, ServerConfig
from extproc.exchange.machine import ExchangeSettings
from extproc.server.admin import AdminServer
from extproc.server.assembly import build_router, build_sampler, build_store
from extproc.server.explaining import Explainer
from extproc.server.grpcio import GrpcioServer
from extproc.server.health import HealthStatuses, WithHealth
from extproc.server.history import History
from extproc.server.metrics import Metrics
from extproc.server.service import ExtProcService
from extproc.server.state import StateKeeper
from extproc.server.status import Status

logger = logging.getLogger(__name__)


_RESPONSE_CHUNK_BYTES = 4 << 20
"""Envoy's streamed response chunks are at most its buffer limit, 1 MiB by default."""


def max_message_bytes(server: ServerConfig) -> int:
    """The largest gRPC message to accept: a body, or a chunk of a response."""
    return max(_RESPONSE_CHUNK_BYTES, server.max_body_bytes + 64 * 1024)


class App:
    """One server process.

    Raises:
        ConfigError: the configuration asks for what is not installed.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ready = False
        self.router = build_router(config)
        self.metrics = Metrics(lambda: self.router.ratios.all())
        store = build_store(config.state)
        self._state = (
            StateKeeper(
                lambda: self.router.learners,
                store,
                config.state.interval_s,
                self.metrics.synced,
            )
            if store is not None
            else None
        )
        self.history = History(time.time, self.router.ratios.bytes_per_token)
        self.status = Status(
            self.router, self.metrics, self.history, lambda: self._ready, time.time
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            OSError: the gRPC address cannot be bound.
        """
        server = self._config.server
        loop = asyncio.get_running_loop()
        service = ExtProcService(
            self.router,
            ExchangeSettings(
                server.max_body_bytes,
                self._config.category.header,
                self._config.feedback.inject_usage,
            ),
            build_sampler(self._config.feedback),
            self.metrics,
            watchers=[self.history],
            defer=loop.call_soon,
        )
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        health = HealthStatuses()
        transport = GrpcioServer(
            WithHealth(service, health), server.listen, max_message_bytes(server)
        )
        if self._state is not None:
            await self._state.start()
        port = await transport.start()
        health.set_all(True)
        admin = await self._start_admin()
        tasks = [asyncio.create_task(self._state.run())] if self._state else []
        self._ready = True
        logger.info(
            "serving",
            extra={"fields": {"listen": server.listen, "port": port}},
        )
        await stopping.wait()
        self._ready = False
        logger.info("draining", extra={"fields": {"timeout_s": server.drain_timeout_s}})
        health.set_all(False, but=("liveness",))
        await transport.drain(server.drain_timeout_s)
        for task in tasks:
            task.cancel()
        if self._state is not None:
            await self._state.stop()
        if admin is not None:
            await admin.stop()
        logger.info("stopped")

    async def _start_admin(self) -> AdminServer | None:
        admin = AdminServer(
            self._config.server.admin,
            self.metrics.registry,
            lambda: self._ready,
            self.status.report,
            Explainer(self.router, self._config.server.max_body_bytes),
            self._config.server.max_body_bytes,
        )
        try:
            address = await admin.start()
        except OSError as error:
            # Requests matter more than their metrics: serve on without the port.
            logger.error(
                "admin_unavailable",
                extra={
                    "fields": {
                        "admin": self._config.server.admin,
                        "error": error.strerror or str(error),
                    }
                },
            )
            await admin.stop()
            return None
        logger.info("admin", extra={"fields": {"admin": address}})
        return admin
