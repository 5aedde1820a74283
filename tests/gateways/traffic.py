"""The router's configuration, and requests with two pools."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..e2e.outside import Client, Response
from ..e2e.unsized import PATH, send_http2

KIB = 1 << 10
BELIEVED = 30_000
"""The short pool's window in the router's configuration.

It exceeds the real window, so that some requests overflow.
"""
CONFIG = {
    "server": {"body_timeout_s": 1},
    "pools": [
        {"name": "short", "max_model_len": BELIEVED},
        {"name": "long", "max_model_len": 65536},
    ],
}


def chat(words: int, padding_bytes: int = 0) -> bytes:
    message = {"role": "user", "content": "word " * words}
    body = json.dumps({"model": "m", "max_tokens": 4, "messages": [message]})
    return body.encode() + b" " * padding_bytes


def pieces(body: bytes) -> list[bytes]:
    return [body[at : at + 16_000] for at in range(0, len(body), 16_000)]


def send_whole(client: Client, parts: Sequence[bytes]) -> Response:
    """Send a body with its length, over HTTP/1.1."""
    return client.post(PATH, b"".join(parts))


def send_whole_http2(client: Client, parts: Sequence[bytes]) -> Response:
    """Send a body with its length, over HTTP/2."""
    length = {"content-length": str(sum(map(len, parts)))}
    return send_http2(client, parts, headers=length)


def answered(response: Response) -> tuple[int, str | None]:
    return response.status, response.headers.get("x-standin")
