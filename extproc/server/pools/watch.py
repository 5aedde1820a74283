"""Polls the pools' vLLM servers and derives the load of each pool for routing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from extproc.config import ConfigError, LoadConfig, PoolConfig
from extproc.routing.policy import PoolLoad
from extproc.routing.pressure import EndpointLoad, PoolPressure, PressureLimits
from extproc.server.pools.resolve import Resolve, resolve
from extproc.server.pools.vllm import NoMetricsError, Vllm, VllmError, read_key

logger = logging.getLogger(__name__)

_UNHEALTHY_AFTER = 3
"""Number of failed polls in a row after which an endpoint counts as unhealthy. With a
smaller number, a busy server could be misjudged, since vLLM may not respond for a
second while it compiles or captures graphs."""

_ANSWER_TIMEOUT_S = 1.0

_LIMITS_INTERVAL_S = 60.0
"""Seconds between two queries of an endpoint's token limit, which changes only with a
new deployment."""

_FIRST_TIMEOUT_S = 3.0
"""Maximum seconds by which unresponsive endpoints delay startup."""

_RESOLVE_INTERVAL_S = 5.0
"""Seconds between two DNS lookups of an endpoint's name, as in Envoy's STRICT_DNS."""


@dataclass(slots=True, eq=False)
class _Endpoint:
    vllm: Vllm
    url: str
    """Base URL as configured."""
    address: str | None
    """IP address of this server; None if the name does not resolve."""
    load: EndpointLoad | None = None
    measured_s: float = 0.0
    in_flight: int = 0
    """Value of ``PoolPressure.in_flight`` when the load was measured."""
    asked: bool = False
    failures: int = 0
    max_model_len: int | None = None
    names: tuple[str, ...] = ()
    """Model names that the server lists."""
    base: str = ""
    """First name of the server's base model."""
    asked_limits_s: float | None = None

    @property
    def healthy(self) -> bool:
        return self.failures < _UNHEALTHY_AFTER

    def status(self, oldest_s: float) -> EndpointStatus:
        fresh = self.load if self.healthy and self.measured_s >= oldest_s else None
        return EndpointStatus(
            self.vllm.name,
            self.healthy,
            None if fresh is None else fresh.waiting,
            None if fresh is None else fresh.running,
            None if fresh is None else fresh.kv_cache_usage,
            self.max_model_len,
        )


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """The last answer of a vLLM server; fields are None without a recent answer."""

    name: str
    healthy: bool
    waiting: float | None
    running: float | None
    kv_cache_usage: float | None
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The known state of a pool, for the metrics and the live page."""

    name: str
    endpoints: int
    healthy: int
    under_pressure: bool
    waiting: float | None
    """Mean queue length over the endpoints with a recent answer; None without such an
    endpoint."""
    kv_cache_usage: float | None
    max_model_len_differs: bool
    """Whether an endpoint's max_model_len differs from the configured value."""


@dataclass(slots=True)
class _Pool:
    config: PoolConfig
    pressure: PoolPressure
    endpoints: dict[_Endpoint, asyncio.Task[None] | None] = field(default_factory=dict)
    """Endpoints, each with the task that polls the endpoint."""

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


def reconcile(
    known: Collection[str | None], wanted: Collection[str | None]
) -> tuple[list[str | None], list[str | None]]:
    """Return the known addresses to remove and the new addresses to add."""
    gone = [address for address in known if address not in wanted]
    new = [address for address in wanted if address not in known]
    return gone, new


class LoadWatch:
    """Polls the endpoints of all pools that have endpoints.

    Args:
        pools: the configured pools; pools without endpoints are not polled.
        config: polling interval and pressure thresholds.
        clock: monotonic clock in seconds.
        resolve: returns the addresses behind a URL.
        resolve_interval_s: seconds between two lookups of the addresses.
    """

    def __init__(
        self,
        pools: Sequence[PoolConfig],
        config: LoadConfig,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = resolve,
        resolve_interval_s: float = _RESOLVE_INTERVAL_S,
    ) -> None:
        self._config = config
        self._resolve = resolve
        self._resolve_interval_s = resolve_interval_s
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
        self._names: Mapping[str, str] = {}
        self._bases: Mapping[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._lookups: list[asyncio.Task[None]] = []

    def current(self) -> Mapping[str, PoolLoad]:
        """Return the load of each pool; a pool without an entry counts as idle."""
        return self._loads

    def served_names(self) -> Mapping[str, str]:
        """Return the pool for each model name that the servers list."""
        return self._names

    def base_names(self) -> Mapping[str, str]:
        """Return the name of the base model for each model name that the servers list.

        A server has one base model. The other names that it lists are aliases and
        adapters.
        """
        return self._bases

    def _list_names(self) -> None:
        names: dict[str, str] = {}
        bases: dict[str, str] = {}
        for pool in self._pools.values():
            for endpoint in pool.endpoints:
                # Another server may list the same base model under other names.
                base = bases.get(endpoint.base, endpoint.base)
                for name in endpoint.names:
                    names.setdefault(name, pool.config.name)
                    bases.setdefault(name, base)
        self._names, self._bases = names, bases

    def routed(self, pool: str) -> None:
        """Count a request sent to a pool."""
        watched = self._pools.get(pool)
        if watched is not None:
            watched.pressure.sent()
            self._recount(watched)

    def landed(self, pool: str) -> None:
        """Count the end of a request sent to a pool."""
        watched = self._pools.get(pool)
        if watched is not None:
            watched.pressure.ended()
            self._recount(watched)

    def _recount(self, pool: _Pool) -> None:
        if pool.pressure.waiting:
            self._conclude(pool)

    def statuses(self) -> list[PoolStatus]:
        """Return the status of every polled pool."""
        return [pool.status() for pool in self._pools.values()]

    def endpoints(self) -> dict[str, list[EndpointStatus]]:
        """Return the servers of every polled pool, by the pool's name."""
        oldest_s = self._clock() - self._config.stale_after_s
        return {
            name: [endpoint.status(oldest_s) for endpoint in pool.endpoints]
            for name, pool in self._pools.items()
        }

    async def start(self) -> None:
        """Poll every endpoint once, then continue in the background.

        Raises:
            ConfigError: an endpoint's max_model_len differs from its pool's
                configuration, or a key cannot be read.
        """
        for pool in self._pools.values():
            check_key(pool.config)
        timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        named = [
            (pool, url)
            for pool in self._pools.values()
            for url in pool.config.endpoints
        ]
        await asyncio.gather(*(self._look_up(*pair, first=True) for pair in named))
        watched = [
            (pool, endpoint)
            for pool in self._pools.values()
            for endpoint in pool.endpoints
        ]
        first = [asyncio.create_task(self._ask(*pair)) for pair in watched]
        try:
            if first:
                await asyncio.wait(first, timeout=_FIRST_TIMEOUT_S)
        finally:
            for task in first:
                task.cancel()
        self.check_limits()
        for pool, endpoint in watched:
            pool.endpoints[endpoint] = asyncio.create_task(self._watch(pool, endpoint))
        self._lookups = [asyncio.create_task(self._keep_up(*pair)) for pair in named]

    def check_limits(self) -> None:
        """Compare the endpoints' token limits with the configuration.

        Raises:
            ConfigError: an endpoint's limit differs.
        """
        for pool in self._pools.values():
            endpoint = pool.differing()
            if endpoint is not None:
                raise ConfigError(
                    f"pool {pool.config.name}: max_model_len: "
                    f"{pool.config.max_model_len}; {endpoint.vllm.name} has "
                    f"{endpoint.max_model_len}"
                )

    async def stop(self) -> None:
        """Stop polling."""
        asking = [t for pool in self._pools.values() for t in pool.endpoints.values()]
        tasks = [*self._lookups, *(task for task in asking if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _keep_up(self, pool: _Pool, url: str) -> None:
        """Keep the addresses behind a URL's host name up to date."""
        while True:
            await asyncio.sleep(self._resolve_interval_s)
            await self._look_up(pool, url)

    async def _look_up(self, pool: _Pool, url: str, *, first: bool = False) -> None:
        """Update the endpoints, so that each address behind a URL has an endpoint."""
        addresses: Sequence[str | None] = await self._addresses(url)
        if not addresses:
            if not first:
                return  # the lookup failed: keep the known addresses
            addresses = [None]
        known = {e.address: e for e in pool.endpoints if e.url == url}
        gone, new = reconcile(known, addresses)
        for address in gone:
            task = pool.endpoints.pop(known[address])
            if task is not None:
                task.cancel()
        for address in new:
            self._add(pool, url, address, asks=not first)
        if not first and (gone or new):
            fields = {"pool": pool.config.name, "url": url, "servers": len(addresses)}
            logger.info("endpoints_changed", extra={"fields": fields})
            self._measure(pool)

    async def _addresses(self, url: str) -> Sequence[str]:
        """Return the addresses behind a URL's host name; empty if they are unknown."""
        try:
            async with asyncio.timeout(_FIRST_TIMEOUT_S):
                return await self._resolve(URL(url))
        except TimeoutError:
            return ()
        except Exception:
            logger.exception("name_lookup_failed")
            return ()

    def _add(self, pool: _Pool, url: str, address: str | None, *, asks: bool) -> None:
        assert self._session is not None
        vllm = Vllm(self._session, url, address, pool.config.api_key_file)
        endpoint = _Endpoint(vllm, url, address)
        task = asyncio.create_task(self._watch(pool, endpoint)) if asks else None
        pool.endpoints[endpoint] = task

    async def _watch(self, pool: _Pool, endpoint: _Endpoint) -> None:
        while True:
            if endpoint.asked:
                await asyncio.sleep(self._config.interval_s)
            try:
                await self._ask(pool, endpoint)
            except Exception:
                # An unexpected answer must not stop the polling.
                logger.exception("load_watch_failed")

    async def _ask(self, pool: _Pool, endpoint: _Endpoint) -> None:
        was_healthy = endpoint.healthy
        endpoint.asked = True
        try:
            endpoint.load = await endpoint.vllm.load()
            endpoint.measured_s = self._clock()
            endpoint.in_flight = pool.pressure.in_flight
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
            endpoint.asked_limits_s = None  # the server may restart with other limits
            _log("endpoint_back", pool, endpoint)
        self._measure(pool)

    async def _ask_limits(self, pool: _Pool, endpoint: _Endpoint) -> None:
        last = endpoint.asked_limits_s
        if last is not None and self._clock() - last < _LIMITS_INTERVAL_S:
            return
        before = endpoint.max_model_len
        served = await endpoint.vllm.models()
        endpoint.asked_limits_s = self._clock()
        endpoint.max_model_len = served.max_model_len
        if served.names and served.names != endpoint.names:
            endpoint.names, endpoint.base = served.names, served.base
            self._list_names()
        reported = endpoint.max_model_len
        if reported not in (None, before, pool.config.max_model_len):
            _log("max_model_len_differs", pool, endpoint, max_model_len=reported)

    def _measure(self, pool: _Pool) -> None:
        oldest = self._clock() - self._config.stale_after_s
        fresh = [
            (endpoint.load, endpoint.in_flight)
            for endpoint in pool.endpoints
            if endpoint.load is not None
            and endpoint.healthy
            and endpoint.measured_s >= oldest
        ]
        pool.pressure.measured(
            [load for load, _ in fresh], [in_flight for _, in_flight in fresh]
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
    fields = {"pool": pool.config.name, "endpoint": endpoint.vllm.name, **fields}
    logger.warning(event, extra={"fields": fields})


def check_key(pool: PoolConfig) -> None:
    """Check that the API key of a pool can be read.

    Raises:
        ConfigError: the key cannot be read.
    """
    if pool.api_key_file is None:
        return
    try:
        read_key(pool.api_key_file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "contains no API key"
        raise ConfigError(
            f"pool {pool.name}: api_key_file: {pool.api_key_file!r}: {reason}; "
            "expected a file with one line"
        ) from None
