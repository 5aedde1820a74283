"""The requests of the demo: generated, of every kind, size and API, or from a file."""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from extproc.demo.standin.request import ServedApi
from extproc.demo.texts import Kind, write

_MIB = 1024 * 1024

# Maximum bytes of each kind of text. Each maximum is less than about 50,000 tokens, so
# that every request fits the long pool (65,536): digits have 1.1 bytes per token, JSON
# 2.4, other text 3.5 or more.
_MOST_BYTES = {Kind.DIGITS: 40_000, Kind.STRUCTURED: 90_000, Kind.MIXED: 70_000}
_MOST_BYTES_ELSE = 140_000
_FEWEST_BYTES = 80
# Four requests in five have fewer bytes: chats and short documents.
_USUAL_BYTES = 12_000
_REFERENCE_WINDOW = 8192

_API_WEIGHTS = {
    ServedApi.CHAT: 75,
    ServedApi.MESSAGES: 10,
    ServedApi.COMPLETIONS: 10,
    ServedApi.RESPONSES: 5,
}

_TASKS = (
    "Summarise this in three sentences.",
    "What is wrong here? Answer briefly.",
    "Translate the following into plain English.",
    "List the main points.",
    "Rewrite this so that a beginner understands it.",
)


class RequestFileError(Exception):
    """A request file has an invalid line; the message has its number and the reason."""


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """One request to send."""

    path: str
    body: bytes
    kind: str
    """The kind of the request's text; ``file`` for the user's own requests."""
    stream: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """Constraints on the generated requests."""

    model: str = "demo"
    """The model to request."""
    short_window: int = _REFERENCE_WINDOW
    """``max_model_len`` of the short pool; sizes scale with it, so that about one
    request in six does not fit."""
    longest_answer: int | None = None
    """Output limit of every request; if None, some requests have different limits."""
    images: bool = True
    """Whether one chat in fifty contains an image."""


def make_requests(
    count: int, seed: int, target: Target | None = None
) -> Iterator[DemoRequest]:
    """Generate ``count`` requests, of each kind in turn; the seed determines them."""
    target = target or Target()
    rng = random.Random(seed)
    kinds = list(Kind)
    scale = target.short_window / _REFERENCE_WINDOW
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = max(_FEWEST_BYTES, int(_size_bytes(kind, rng) * scale))
        yield _request(kind, write(kind, size, rng), target, rng)


def _size_bytes(kind: Kind, rng: random.Random) -> int:
    """Return a log-uniform random size: usual, or, one time in five, above that."""
    most = _MOST_BYTES.get(kind, _MOST_BYTES_ELSE)
    low, high = (
        (_FEWEST_BYTES, _USUAL_BYTES) if rng.random() < 0.8 else (_USUAL_BYTES, most)
    )
    return int(math.exp(rng.uniform(math.log(low), math.log(high))))


def _request(kind: Kind, text: str, target: Target, rng: random.Random) -> DemoRequest:
    api = rng.choices(tuple(_API_WEIGHTS), weights=tuple(_API_WEIGHTS.values()))[0]
    stream = rng.random() < 0.5
    body: dict[str, object] = {"model": target.model}
    if stream:
        body["stream"] = True
    limit = rng.choice((16, 32, 64, 128, 256)) if rng.random() < 0.6 else None
    limit = target.longest_answer or limit
    match api:
        case ServedApi.CHAT:
            messages = _messages(text, rng)
            body["messages"] = messages
            if rng.random() < 0.15:
                body["tools"] = _tools(rng)
            if rng.random() < 0.02 and target.images:
                _attach_image(messages[-1], rng)
            if stream and rng.random() < 0.7:
                body["stream_options"] = {"include_usage": True}
            _set(body, rng.choice(("max_tokens", "max_completion_tokens")), limit)
        case ServedApi.MESSAGES:
            body["messages"] = _messages(text, rng, system=False)
            # Anthropic's API requires a limit.
            body["max_tokens"] = limit or 512
        case ServedApi.COMPLETIONS:
            body["prompt"] = text
            _set(body, "max_tokens", limit)
        case ServedApi.RESPONSES:
            body["input"] = text
            _set(body, "max_output_tokens", limit)
    # Some clients escape non-ASCII characters in JSON, which does not change the
    # tokens.
    raw = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    return DemoRequest(api, raw.encode(), kind, stream)


def _set(body: dict[str, object], name: str, value: int | None) -> None:
    if value is not None:
        body[name] = value


def _messages(
    text: str, rng: random.Random, *, system: bool = True
) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    if system and rng.random() < 0.5:
        messages.append({"role": "system", "content": "You are a careful assistant."})
    if rng.random() < 0.3:
        middle = len(text) // 2
        messages.append({"role": "user", "content": text[:middle]})
        messages.append({"role": "assistant", "content": "Go on, I am listening."})
        text = text[middle:]
    task = rng.choice(_TASKS)
    messages.append({"role": "user", "content": f"{task}\n\n{text}"})
    return messages


def _tools(rng: random.Random) -> list[dict[str, object]]:
    names = rng.sample(("find_file", "run_query", "send_mail", "book_room"), 2)
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"Call this to {name.replace('_', ' ')}.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "target": {"type": "string", "description": "What to act on."},
                        "limit": {"type": "integer", "minimum": 1},
                    },
                    "required": ["target"],
                },
            },
        }
        for name in names
    ]


def _attach_image(message: dict[str, object], rng: random.Random) -> None:
    """Add an image in base64, as clients do; some images exceed a megabyte."""
    picture = base64.b64encode(rng.randbytes(rng.choice((_MIB // 8, _MIB)))).decode()
    message["content"] = [
        {"type": "text", "text": message["content"]},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]


def read_requests(lines: Iterable[str]) -> Iterator[DemoRequest]:
    """Read the user's own requests, one JSON object on each line.

    Each line is either ``{"path": ..., "body": ..., "headers": {...}?}``, as for
    ``replay``, with the body as an object or as a string, or it is only a body, whose
    fields determine the API.

    Raises:
        RequestFileError: an invalid line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RequestFileError(f"line {number}: {error}") from error
        if not isinstance(record, dict):
            raise RequestFileError(f"line {number}: expected an object")
        if "body" in record:
            yield _logged_request(record, number)
        else:
            yield _bare_request(record, line, number)


def _logged_request(record: dict[str, object], number: int) -> DemoRequest:
    path = record.get("path", ServedApi.CHAT)
    body = record["body"]
    headers = record.get("headers", {})
    if not isinstance(path, str) or not path.startswith("/"):
        raise RequestFileError(f"line {number}: path {path!r}; expected /v1/...")
    if not isinstance(headers, dict):
        raise RequestFileError(
            f"line {number}: headers {headers!r}; expected an object"
        )
    raw = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    try:
        parsed = json.loads(raw)
    except ValueError:
        parsed = None  # an invalid body is sent too; the backend will reject it
    return DemoRequest(
        path,
        raw.encode(),
        "file",
        isinstance(parsed, dict) and parsed.get("stream") is True,
        {str(name): str(value) for name, value in headers.items()},
    )


def _bare_request(body: dict[str, object], line: str, number: int) -> DemoRequest:
    for name, api in (
        ("messages", ServedApi.CHAT),
        ("prompt", ServedApi.COMPLETIONS),
        ("input", ServedApi.RESPONSES),
    ):
        if name in body:
            stream = body.get("stream") is True
            return DemoRequest(api, line.strip().encode(), "file", stream)
    raise RequestFileError(
        f"line {number}: no body, messages, prompt or input in {sorted(body)}"
    )
