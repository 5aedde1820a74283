"""Requests, parsed from the bodies of each API."""

import json
from typing import Any

from extproc.exchange.body_parser import parse_request
from extproc.routing.request import Request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"


def read(path: str, body: bytes) -> Request:
    request = parse_request(path, body)
    assert isinstance(request, Request)
    return request


def parse(path: str, **body: Any) -> Request:
    return read(path, json.dumps(body).encode())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}
