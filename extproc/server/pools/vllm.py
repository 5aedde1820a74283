"""What a vLLM server says of itself over HTTP: load, limits, health."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
from yarl import URL

from extproc.routing.pressure import EndpointLoad
from extproc.routing.request import MAX_MODEL_CHARS
from extproc.server.pools.unanswered import reason

MAX_ANSWER_BYTES = 8 << 20
"""vLLM's /metrics is 50 to 200 KB; whatever answers with more than this is not it."""

_MAX_KEY_BYTES = 8192
"""Servers take no longer header."""

# Other metrics begin with the same words (``num_requests_waiting_by_reason``).
# ``gpu_cache_usage_perc`` is the name before vLLM 0.10.
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_waiting|num_requests_running"
    rb"|kv_cache_usage_perc|gpu_cache_usage_perc)(?:\{.*\})? +(\S+)",
    re.MULTILINE,
)


class VllmError(Exception):
    """No answer, or not one of vLLM's; the message says which."""


class NoMetricsError(VllmError):
    """The server is there, but has no metrics for us."""


class ServedModels(NamedTuple):
    """What a server serves."""

    max_model_len: int | None = None
    """The window; None if the server does not say."""
    names: tuple[str, ...] = ()
    """The names that it answers to: of its base model, and of adapters."""
    base: str = ""
    """The first name of its base model; empty if it lists none."""
    status: int = 200
    """HTTP status of the answer."""


_MAX_NAMES = 1000
"""Names of one server that are looked at."""


class Vllm:
    """One vLLM server.

    Args:
        session: its timeout is how long an answer may take.
        url: its base URL.
        address: of the one server that is meant, where the URL's name has several.
        key_file: holds the API key that it asks for. Read each time, as keys change.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        address: str | None = None,
        key_file: str | None = None,
    ) -> None:
        self._session = session
        self._base = URL(url.rstrip("/"))
        self._address = address
        self._key_file = key_file
        self.name = str(self._base)
        """For logs."""
        if address not in (None, self._base.host):
            self.name = f"{self._base} ({address})"

    async def load(self) -> EndpointLoad:
        """Ask for the load.

        Raises:
            NoMetricsError: it is healthy, but says nothing of its load.
            VllmError: it does not answer, or is not healthy.
        """
        status, body = await self._get("/metrics")
        found = parse_metrics(body) if status == 200 else None
        if found is not None:
            return found
        health, _ = await self._get("/health")
        if health == 200:
            raise NoMetricsError(f"no vLLM metrics, status {status}")
        raise VllmError(f"/health: status {health}")

    async def models(self) -> ServedModels:
        """Return what it serves; nothing if it does not say (without an API key, say).

        Raises:
            VllmError: it does not answer.
        """
        status, body = await self._get("/v1/models")
        return parse_models(body) if status == 200 else ServedModels(status=status)

    async def _get(self, path: str) -> tuple[int, bytes]:
        url, host = self._base.joinpath(path[1:]), self._base.host
        headers = {"host": self._base.authority} | self._authorization()
        if self._address is not None:
            url = url.with_host(self._address)
        try:
            async with self._session.get(
                url,
                headers=headers,
                server_hostname=host if url.scheme == "https" else None,
                allow_redirects=False,  # the key is for this server
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise VllmError(f"{path}: over {MAX_ANSWER_BYTES} bytes")
                return response.status, bytes(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise VllmError(f"{path}: {reason(error)}") from error

    def _authorization(self) -> dict[str, str]:
        if self._key_file is None:
            return {}
        try:
            return {"authorization": f"Bearer {read_key(self._key_file)}"}
        except OSError as error:
            raise VllmError(f"{self._key_file}: {error.strerror}") from None
        except ValueError:
            raise VllmError(f"{self._key_file}: no key in it") from None


def read_key(file: str) -> str:
    """Read an API key.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not one line of what a header may hold.
    """
    key = Path(file).read_bytes()[:_MAX_KEY_BYTES].decode("ascii").strip()
    if not key or not key.isprintable():
        raise ValueError("not a key")
    return key


def parse_metrics(body: bytes) -> EndpointLoad | None:
    """Read a vLLM server's /metrics; None if the load is not in it."""
    values: dict[bytes, list[float]] = {}
    for name, text in _SAMPLE.findall(body):
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            values.setdefault(name, []).append(value)
    waiting = values.get(b"num_requests_waiting")
    running = values.get(b"num_requests_running")
    usage = values.get(b"kv_cache_usage_perc") or values.get(b"gpu_cache_usage_perc")
    if not waiting or not running or not usage:
        return None
    return EndpointLoad(sum(waiting), sum(running), sum(usage) / len(usage))


class _Model(msgspec.Struct):
    id: str = ""
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


def parse_models(body: bytes) -> ServedModels:
    """Read a vLLM server's /v1/models.

    It lists the base model, under each of its names, and every adapter that is loaded
    (an entry with a ``parent``); of an adapter no window is given.
    """
    try:
        models = msgspec.json.decode(body, type=_Models)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ServedModels()
    lengths = [model.max_model_len for model in models.data if model.max_model_len]
    names = [model.id for model in models.data if 0 < len(model.id) <= MAX_MODEL_CHARS]
    bases = [model.id for model in models.data if not model.parent]
    return ServedModels(
        max(lengths, default=None),
        tuple(names[:_MAX_NAMES]),
        next((name for name in bases if name in names), ""),
    )
