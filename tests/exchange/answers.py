"""Response bodies of backends, and readers that receive these bodies in pieces."""

import json
from typing import Any

import pytest

from extproc.exchange.usage import (
    Usage,
    UsageReader,
)


def event(data: Any, line_end: str = "\n") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}{line_end}{line_end}".encode()


def chunk(**more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": "wörd"}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice], **more}


USAGE = {"prompt_tokens": 133, "total_tokens": 149, "completion_tokens": 16}
USAGE_CHUNK = chunk(choices=[], usage=USAGE)


def stream(*events: Any, line_end: str = "\n") -> bytes:
    return b"".join(event(e, line_end) for e in events)


def read(reader: UsageReader, *chunks: bytes) -> tuple[Usage, bytes]:
    passed = b"".join([reader.feed(c) for c in chunks])
    return reader.usage, passed + reader.finish()


def splits(body: bytes) -> list[tuple[bytes, ...]]:
    """Yield a body whole, byte by byte, and in two pieces for every split position."""
    return [
        (body,),
        tuple(bytes([b]) for b in body),
        *((body[:i], body[i:]) for i in range(1, len(body))),
    ]


def counts(usage: Usage) -> tuple[int | None, int | None]:
    return usage.prompt_tokens, usage.completion_tokens


LINE_ENDS = pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=repr)
