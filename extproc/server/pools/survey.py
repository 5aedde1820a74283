"""Queries every configured vLLM server once and compares it with its pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp
from yarl import URL

from extproc.config import Config, ConfigError, PoolConfig
from extproc.server.pools.resolve import Resolve, resolve
from extproc.server.pools.vllm import NoMetricsError, ServedModels, Vllm, VllmError
from extproc.server.pools.watch import check_key

TIMEOUT_S = 5.0
"""Seconds to wait for one response. The time is long because servers under load are
slow."""

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Result for one server of a pool, or for a pool without servers."""

    pool: str
    server: str
    """URL of the server, with the server's address if the host has several addresses.
    Empty if the pool has no server."""
    said: str
    """Description of the response without its faults."""
    faults: tuple[str, ...] = ()
    """Mismatches, each with the actual and the expected value. Empty if the server fits
    its pool."""


async def survey(config: Config, resolve: Resolve = resolve) -> list[Finding]:
    """Query the servers of all pools concurrently.

    Args:
        config: the pools to check.
        resolve: returns the addresses behind a URL.

    Returns:
        A finding for each server, in the order of the configuration. A pool without
        ``endpoints`` has one finding without a server.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        found = await asyncio.gather(
            *(
                _ask_pool(session, pool, model, resolve)
                for pool, model in _pools_with_model(config)
            )
        )
    return [finding for findings in found for finding in findings]


def _pools_with_model(config: Config) -> Iterator[tuple[PoolConfig, str | None]]:
    for pool in config.pools:
        yield pool, None
    for model, each in config.models.items():
        for pool in each.pools:
            yield pool, model


async def _ask_pool(
    session: aiohttp.ClientSession,
    pool: PoolConfig,
    model: str | None,
    resolve: Resolve,
) -> Sequence[Finding]:
    if not pool.endpoints:
        return [Finding(pool.name, "", "no endpoints: not checked")]
    try:
        check_key(pool)
    except ConfigError as error:
        return [Finding(pool.name, "", "not checked", (str(error),))]
    addresses = await asyncio.gather(*(resolve(URL(url)) for url in pool.endpoints))
    unknown: Sequence[str | None] = (None,)
    servers = [
        Vllm(session, url, address, pool.api_key_file)
        for url, found in zip(pool.endpoints, addresses, strict=True)
        for address in (found or unknown)
    ]
    return await asyncio.gather(*(_ask(server, pool, model) for server in servers))


async def _ask(server: Vllm, pool: PoolConfig, model: str | None) -> Finding:
    try:
        served = await server.models()
        load = await _ask_load(server)
    except VllmError as error:
        return Finding(pool.name, server.name, "no answer", (str(error),))
    if served.status != 200:
        return Finding(
            pool.name, server.name, load, tuple(_refusal(served.status, pool))
        )
    window = served.max_model_len
    parts = [
        "max_model_len not reported" if window is None else f"max_model_len {window}",
        f"serves {_listed(served.names)}",
        load,
    ]
    return Finding(
        pool.name,
        server.name,
        "; ".join(parts),
        tuple(_faults(served, pool, model)),
    )


async def _ask_load(server: Vllm) -> str:
    try:
        load = await server.load()
    except NoMetricsError:
        return "no load metrics"
    return f"{load.running:.0f} running, {load.waiting:.0f} waiting"


def _refusal(status: int, pool: PoolConfig) -> Iterator[str]:
    wanted = "200"
    if status in (401, 403):
        key = "its" if pool.api_key_file else "an"
        wanted = f"200 with {key} api_key_file"
    yield f"/v1/models: status {status}; expected {wanted}"


def _faults(served: ServedModels, pool: PoolConfig, model: str | None) -> Iterator[str]:
    window = served.max_model_len
    if window not in (None, pool.max_model_len):
        yield f"max_model_len: {window}; expected {pool.max_model_len}"
    if model is not None and model not in served.names:
        yield f"models: {_listed(served.names)}; expected {model}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def render(findings: Sequence[Finding]) -> Iterator[str]:
    """Return the lines to print, with pool, server, ``ok`` or faults, and response."""
    widths = [
        max((len(value) for value in column), default=0)
        for column in zip(*((each.pool, each.server) for each in findings), strict=True)
    ]
    for each in findings:
        where = f"{each.pool:{widths[0]}}  {each.server:{widths[1]}}"
        verdict = "; ".join(f"WRONG {fault}" for fault in each.faults)
        state = verdict or ("ok" if each.server else "--")
        yield f"{where}  {state}  ({each.said})"
