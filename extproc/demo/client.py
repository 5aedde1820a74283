"""Sends requests through Envoy and records the responses."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from extproc.demo.workload import DemoRequest
from extproc.server.pools.unanswered import reason

_TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request.

    Attributes:
        status: HTTP status; 0 without a response.
        prompt_tokens, completion_tokens: the counts that the backend reports, if any.
        truncated: whether a limit ended the output.
        detail: a short description of a failure.
    """

    request_id: str
    request: DemoRequest
    status: int
    prompt_tokens: int | None
    completion_tokens: int | None
    truncated: bool
    duration_s: float
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the request got no complete response."""
        return self.status != 200 or bool(self.detail)


async def send_all(
    url: str,
    requests: Sequence[DemoRequest],
    concurrency: int,
    progress: Callable[[], None],
) -> list[Reply]:
    """Send requests, ``concurrency`` at a time; return replies in the same order."""
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))
    async with _session() as session:

        async def worker() -> None:
            for position, request in waiting:
                replies[position] = await send(session, url, request)
                progress()

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return [reply for reply in replies if reply is not None]


async def send(session: aiohttp.ClientSession, url: str, request: DemoRequest) -> Reply:
    """Send one request and read its response to the end."""
    request_id = str(uuid.uuid4())
    headers = {
        "content-type": "application/json",
        **request.headers,
        "x-request-id": request_id,
    }
    started = time.perf_counter()
    status, content, detail = 0, b"", ""
    try:
        async with session.post(
            url + request.path, data=request.body, headers=headers
        ) as response:
            status = response.status
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        detail = reason(error)
    duration_s = time.perf_counter() - started
    if status not in (0, 200):
        detail = content[:300].decode(errors="replace")
    usage, truncated = read_usage(content) if status == 200 else ({}, False)
    return Reply(
        request_id,
        request,
        status,
        _count(usage, "prompt_tokens", "input_tokens"),
        _count(usage, "completion_tokens", "output_tokens"),
        truncated,
        duration_s,
        detail,
    )


async def time_alternately(
    urls: Sequence[str], requests: Sequence[DemoRequest], rounds: int
) -> list[list[float]]:
    """Return the seconds that each of ``rounds`` requests to each URL takes.

    Requests are sent one at a time, to each URL in turn, over one connection for each.
    Therefore, temporary load on the machine affects all URLs equally.
    """
    seconds: list[list[float]] = [[] for _ in urls]
    async with _session() as session:
        for number in range(rounds):
            for position, (url, request) in enumerate(zip(urls, requests, strict=True)):
                reply = await send(session, url, request)
                if reply.failed:
                    raise RuntimeError(f"timing request {number}: {reply.detail}")
                seconds[position].append(reply.duration_s)
    return seconds


def read_usage(content: bytes) -> tuple[dict[str, int], bool]:
    """Return the token counts of a response (JSON or events), and whether it was cut.

    Later counts override earlier ones, because the last count in a stream is the total.
    """
    usage: dict[str, int] = {}
    truncated = False
    for document in _documents(content):
        for holder in (document, document.get("message"), document.get("response")):
            if isinstance(holder, dict):
                usage |= {
                    name: count
                    for name, count in (holder.get("usage") or {}).items()
                    if isinstance(count, int)
                }
                truncated = truncated or _cut(holder)
    return usage, truncated


def _documents(content: bytes) -> list[dict[str, object]]:
    if content.lstrip().startswith(b"{"):
        texts = [content]
    else:
        texts = [
            line[5:]
            for line in content.splitlines()
            if line.startswith(b"data:") and b"[DONE]" not in line
        ]
    documents = [json.loads(text) for text in texts]
    return [document for document in documents if isinstance(document, dict)]


def _cut(holder: dict[str, object]) -> bool:
    choices = holder.get("choices")
    if isinstance(choices, list) and any(
        choice.get("finish_reason") == "length" for choice in choices
    ):
        return True
    delta = holder.get("delta")
    stop_reason = delta.get("stop_reason") if isinstance(delta, dict) else None
    return (
        "max_tokens" in (stop_reason, holder.get("stop_reason"))
        or holder.get("status") == "incomplete"
    )


def _count(usage: dict[str, int], *names: str) -> int | None:
    return next((usage[name] for name in names if name in usage), None)


def _session() -> aiohttp.ClientSession:
    # Close idle connections before Envoy does, because aiohttp does not resend a POST
    # if its connection is closed.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    return aiohttp.ClientSession(
        connector=connector, timeout=_TIMEOUT, read_bufsize=1 << 20
    )
