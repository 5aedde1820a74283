"""Exchanges, and the messages that Envoy would send to an exchange."""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import brotli
import zstandard
from hypothesis import strategies as st

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.deciding import Decider
from extproc.exchange.events import (
    BodyMode,
    Echo,
    Event,
    Release,
    RequestBody,
    RequestHeaders,
    ResponseHeaders,
    Route,
    Step,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool, PoolLoad
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.risk import NoMargin
from extproc.routing.router import Decision, Router

CHAT = "/v1/chat/completions"
CAP = 4096
SHORT, LONG = Pool("short", 1000, 1000), Pool("long", 8000, 8000)
SETTINGS = ExchangeSettings(max_body_bytes=CAP)
INJECTING = ExchangeSettings(max_body_bytes=CAP, inject_usage=True)

BUFFERING_MODES = [None, BodyMode.NONE, BodyMode.BUFFERED]
STREAMING_MODES = [None, BodyMode.STREAMED]
DUPLEX = BodyMode.FULL_DUPLEX_STREAMED


def exchange(
    *,
    watch: bool = False,
    settings: ExchangeSettings = SETTINGS,
    loads: Callable[[], Mapping[str, PoolLoad] | None] = lambda: None,
) -> Exchange:
    router = Router(Policy([SHORT, LONG]), Bounded(TextEma(), NoMargin()), TextRatios())
    return Exchange(Decider(router, settings, lambda decision: watch, loads))


def chat(text: str = "Hello", **more: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def request(
    body: bytes | int | None = b"",
    *,
    path: str = CHAT,
    method: str = "POST",
    mode: BodyMode | None = BodyMode.NONE,
    response_mode: BodyMode | None = BodyMode.NONE,
    end: bool = False,
    **headers: str,
) -> RequestHeaders:
    """Return request headers; the content-length is the body's, a given one, or absent."""
    all_headers = {":path": path, ":method": method}
    if body is not None:
        length = body if isinstance(body, int) else len(body)
        all_headers["content-length"] = str(length)
    all_headers |= {key.replace("_", "-"): value for key, value in headers.items()}
    return RequestHeaders(all_headers, end, mode, response_mode)


def response(
    status: int = 200,
    kind: str = "application/json",
    *,
    end: bool = False,
    **headers: str,
) -> ResponseHeaders:
    all_headers = {":status": str(status), "content-type": kind}
    all_headers |= {key.replace("_", "-"): value for key, value in headers.items()}
    return ResponseHeaders(all_headers, end)


def send(machine: Exchange, event: Event) -> Step:
    """Send one event, and parse the body completely, even if this takes many steps."""
    result = machine.receive(event)
    return machine.resume() if isinstance(result, BodyParser) else result


def play(machine: Exchange, *events: Event) -> list[Step]:
    return [send(machine, event) for event in events]


def split(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted({c for c in cuts if 0 < c < len(body)}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(places)]


def bodies(parts: Sequence[bytes]) -> list[RequestBody]:
    return [RequestBody(p, i == len(parts) - 1) for i, p in enumerate(parts)]


def routed(step: Step) -> Decision:
    assert isinstance(step.reply, Route | Release)
    assert step.reply.decision is not None
    return step.reply.decision


def sent_on(steps: Iterable[Step]) -> bytes:
    """Return the request body that Envoy sends upstream after these replies."""
    body = b""
    for step in steps:
        if isinstance(step.reply, Release | Echo):
            body += step.reply.body
    return body


CUTS = st.lists(st.integers(0, 400), max_size=8)

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}

USAGE = {"prompt_tokens": 12, "completion_tokens": 34}
ANSWER = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": USAGE}).encode()
USAGE_EVENT = b'data: {"choices": [], "usage": %s}\n\n' % json.dumps(USAGE).encode()
STREAM = b'data: {"choices": [{"delta": {}}]}\n\n' + USAGE_EVENT + b"data: [DONE]\n\n"
