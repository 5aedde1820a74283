"""Asks the pools' vLLM servers how they are, and says what that means for routing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from extproc.config import ConfigError, LoadConfig, PoolConfig
from extproc.routing.policy import PoolLoad
from extproc.routing.pressure import EndpointLoad, PoolPressure, PressureLimits
from extproc.server.vllm import NoMetricsError, Vllm, VllmError

logger = logging.getLogger(__name__)

_UNHEALTHY_AFTER = 3
"""Questions in a row without an answer. Fewer would take a busy server for a dead one:
a vLLM that compiles or captures graphs can be silent for a second."""

_ANSWER_TIMEOUT_S = 1.0

_LIMITS_INTERVAL_S = 60.0
"""Between two looks at an endpoint's window: it changes with a new deployment only."""

_FIRST_TIMEOUT_S = 3.0
"""How long endpoints that do not answer may hold up the start."""


@dataclass(slots=True)
class _Endpoint:
    vllm: Vllm
    load: EndpointLoad | None = None
    measured_s: float = 0.0
    flights: int = 0
    """``PoolPressure.flights`` when it was measured."""
    failures: int = 0
    max_model_len: int | None = None
    asked_limits_s: float | None = None

    @property
    def healthy(self) -> bool:
        return self.failures < _UNHEALTHY_AFTER


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What is known of a pool, for metrics and the status page."""

    name: str
    endpoints: int
    healthy: int
    under_pressure: bool
    waiting: float | None
    """Mean over the endpoints with fresh data; None without any."""
    kv_cache_usage: float | None
    max_model_len_differs: bool
    """Whether an endpoint's window is not the configured one."""


@dataclass(slots=True)
class _Pool:
    config: PoolConfig
    pressure: PoolPressure
    endpoints: list[_Endpoint] = field(default_factory=list)

    def differing(self) -> _Endpoint | None:
        wanted = self.config.max_model_len
        for endpoint in self.endpoints:
            if endpoint.max_model_len not in (None, wanted):
                return endpoint
        return None

    def status(self) -> PoolStatus:
        return PoolStatus(
            self.config.name,
            len(self.endpoints),
            sum(endpoint.healthy for endpoint in self.endpoints),
            self.pressure.under_pressure,
            self.pressure.waiting,
            self.pressure.kv_cache_usage,
            self.differing() is not None,
        )


class LoadWatch:
    """Watches the endpoints of the pools that have any.

    Args:
        pools: as configured; those without endpoints are not watched.
        config: how often, and where pressure begins.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        pools: Sequence[PoolConfig],
        config: LoadConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        limits = PressureLimits(
            config.waiting_requests, config.kv_cache_usage, config.relief
        )
        self._pools = {
            pool.name: _Pool(pool, PoolPressure(limits))
            for pool in pools
            if pool.endpoints
        }
        self._loads: dict[str, PoolLoad] = {}
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def current(self) -> Mapping[str, PoolLoad]:
        """What routing should know; a pool that is not in it counts as idle."""
        return self._loads

    def routed(self, pool: str) -> None:
        """Note that a request was sent to a pool."""
        watched = self._pools.get(pool)
        if watched is not None:
            watched.pressure.sent()
            self._recount(watched)

    def landed(self, pool: str) -> None:
        """Note that one that was sent has ended."""
        watched = self._pools.get(pool)
        if watched is not None:
            watched.pressure.ended()
            self._recount(watched)

    def _recount(self, pool: _Pool) -> None:
        if pool.pressure.waiting:
            self._conclude(pool)

    def statuses(self) -> list[PoolStatus]:
        """Every watched pool."""
        return [pool.status() for pool in self._pools.values()]

    async def start(self) -> None:
        """Ask every endpoint once, then go on asking in the background.

        Raises:
            ConfigError: an endpoint's window is not the one configured for its pool.
        """
        timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        watched = [
            (pool, endpoint)
            for pool in self._pools.values()
            for endpoint in self._connect(pool, self._session)
        ]
        first = [asyncio.create_task(self._ask(*pair)) for pair in watched]
        if first:
            await asyncio.wait(first, timeout=_FIRST_TIMEOUT_S)
        for task in first:
            task.cancel()
        self.check_limits()
        self._tasks = [asyncio.create_task(self._watch(*pair)) for pair in watched]

    def check_limits(self) -> None:
        """Hold what endpoints said of their windows against the configuration.

        Raises:
            ConfigError: one differs.
        """
        for pool in self._pools.values():
            endpoint = pool.differing()
            if endpoint is not None:
                raise ConfigError(
                    f"pool {pool.config.name}: max_model_len: "
                    f"{pool.config.max_model_len}; {endpoint.vllm.url} has "
                    f"{endpoint.max_model_len}"
                )

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _connect(
        self, pool: _Pool, session: aiohttp.ClientSession
    ) -> Sequence[_Endpoint]:
        pool.endpoints = [
            _Endpoint(Vllm(session, url)) for url in pool.config.endpoints
        ]
        return pool.endpoints

    async def _watch(self, pool: _Pool, endpoint: _Endpoint) -> None:
        while True:
            await asyncio.sleep(self._config.interval_s)
            try:
                await self._ask(pool, endpoint)
            except Exception:
                # One odd answer must not end the watch.
                logger.exception("load_watch_failed")

    async def _ask(self, pool: _Pool, endpoint: _Endpoint) -> None:
        was_healthy = endpoint.healthy
        try:
            endpoint.load = await endpoint.vllm.load()
            endpoint.measured_s = self._clock()
            endpoint.flights = pool.pressure.flights
            endpoint.failures = 0
            await self._ask_limits(pool, endpoint)
        except NoMetricsError:
            endpoint.load = None
            endpoint.failures = 0
        except VllmError as error:
            endpoint.failures += 1
            if was_healthy and not endpoint.healthy:
                _log("endpoint_down", pool, endpoint, error=str(error))
        if endpoint.healthy and not was_healthy:
            endpoint.asked_limits_s = None  # it may have come back as another
            _log("endpoint_back", pool, endpoint)
        self._measure(pool)

    async def _ask_limits(self, pool: _Pool, endpoint: _Endpoint) -> None:
        asked = endpoint.asked_limits_s
        if asked is not None and self._clock() - asked < _LIMITS_INTERVAL_S:
            return
        before = endpoint.max_model_len
        endpoint.max_model_len = await endpoint.vllm.max_model_len()
        endpoint.asked_limits_s = self._clock()
        said = endpoint.max_model_len
        if said not in (None, before, pool.config.max_model_len):
            _log("max_model_len_differs", pool, endpoint, max_model_len=said)

    def _measure(self, pool: _Pool) -> None:
        oldest = self._clock() - self._config.stale_after_s
        fresh = [
            (endpoint.load, endpoint.flights)
            for endpoint in pool.endpoints
            if endpoint.load is not None
            and endpoint.healthy
            and endpoint.measured_s >= oldest
        ]
        pool.pressure.measured(
            [load for load, _ in fresh], [flights for _, flights in fresh]
        )
        self._conclude(pool)

    def _conclude(self, pool: _Pool) -> None:
        name = pool.config.name
        available = any(endpoint.healthy for endpoint in pool.endpoints)
        load = PoolLoad(available, pool.pressure.under_pressure)
        before = self._loads.get(name, PoolLoad())
        if load != before:
            fields = {
                "pool": name,
                "available": available,
                "under_pressure": load.under_pressure,
            }
            logger.info("pool_load", extra={"fields": fields})
        self._loads[name] = load


def _log(event: str, pool: _Pool, endpoint: _Endpoint, **fields: object) -> None:
    fields = {"pool": pool.config.name, "endpoint": endpoint.vllm.url, **fields}
    logger.warning(event, extra={"fields": fields})
