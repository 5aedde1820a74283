"""HTTP client for a vLLM server's load, limits and health."""

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
"""Maximum response size in bytes. vLLM's /metrics has 50 to 200 KB, so a larger
response is not from vLLM."""

_MAX_KEY_BYTES = 8192
"""Maximum size of an API key in bytes, since servers reject longer headers."""

# The whole name has to match, since other metrics have longer names with the same
# beginning, such as ``num_requests_waiting_by_reason``. Before vLLM 0.10,
# ``kv_cache_usage_perc`` was named ``gpu_cache_usage_perc``.
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_waiting|num_requests_running"
    rb"|kv_cache_usage_perc|gpu_cache_usage_perc)(?:\{.*\})? +(\S+)",
    re.MULTILINE,
)


class VllmError(Exception):
    """The server did not respond or is not vLLM; the message states the cause."""


class NoMetricsError(VllmError):
    """The server is up but returns no load metrics."""


class ServedModels(NamedTuple):
    """The models that a server serves."""

    max_model_len: int | None = None
    """Token limit of the base model; None if the server does not report it."""
    names: tuple[str, ...] = ()
    """Names of the base model and of the loaded adapters."""
    base: str = ""
    """First name of the base model; empty if the server lists none."""
    status: int = 200
    """HTTP status of the response."""


_MAX_NAMES = 1000
"""Maximum number of model names to read from one server."""


class Vllm:
    """One vLLM server.

    Args:
        session: HTTP session; the timeout of the session limits each request.
        url: base URL of the server.
        address: IP address of the server, if the URL's host has several addresses.
        key_file: file with the server's API key. It is read on each request because
            keys change.
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
        """Name for log lines."""
        if address not in (None, self._base.host):
            self.name = f"{self._base} ({address})"

    async def load(self) -> EndpointLoad:
        """Query the load.

        Raises:
            NoMetricsError: the server is healthy but does not report its load.
            VllmError: the server does not respond, or is not healthy.
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
        """Return the served models; none if they are not listed (no API key).

        Raises:
            VllmError: the server does not respond.
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
                allow_redirects=False,  # the key is only for this server
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
            raise VllmError(f"{self._key_file}: contains no API key") from None


def read_key(file: str) -> str:
    """Read an API key from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a single line of valid header characters.
    """
    key = Path(file).read_bytes()[:_MAX_KEY_BYTES].decode("ascii").strip()
    if not key or not key.isprintable():
        raise ValueError("contains no API key")
    return key


def parse_metrics(body: bytes) -> EndpointLoad | None:
    """Parse a vLLM server's /metrics; return None if it does not contain the load."""
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
    """Parse a vLLM server's /v1/models.

    It lists the base model under each of its names, and every loaded adapter (an entry
    with a ``parent``). Adapters have no token limit of their own.
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
