"""The router's configuration, and requests with two pools."""

from __future__ import annotations

import json

from ..e2e.outside import Response

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


def answered(response: Response) -> tuple[int, str | None]:
    return response.status, response.headers.get("x-standin")
