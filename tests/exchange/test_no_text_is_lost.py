"""Ten thousand tokens of text count, wherever they are in a request.

The test replaces each text in a body with a short and with a long text. It also adds
the text to the fields of each object and to the end of each list. Each time, either the
long text must add its tokens to the estimate and send the request to the long pool, or
vLLM would reject the request.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request
from extproc.routing.router import Decision, Router

from .bodies import BODIES

Place = tuple[str | int, ...]

LITTLE = "x"
BIG = "The quick brown fox jumps over the lazy dog again. " * 900
"""A text of about 10,000 tokens."""

SHORT, LONG = Pool("short", 8192, 8192), Pool("long", 1 << 20, 1 << 20)

REACHES_NO_PROMPT = {
    # prompt_parts.py and openai.py list these places, with the sources.
    *("model", "detail", "status", "annotations", "cache_control", "citations"),
    *("signature", "encrypted_content"),
}
BESIDE_PARTS: set[Place] = {("documents",)}
"""A document to rerank that has several parts; vLLM uses only the field ``content``."""
ROOT_NAMES = {"text"}
"""A field of the body that sets the format of the output in one API."""


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield place, value
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from places(each, (*place, key))


def put(body: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(body)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def with_text(value: Any, text: str, *, root: bool) -> Iterator[Any]:
    """Yield copies of a value to which a text is added in every possible way."""
    if isinstance(value, str):
        yield text
    if isinstance(value, list):
        yield from ([*value, each] for each in (text, {"unheard_of": text}))
    if isinstance(value, dict):
        inner = [{"type": "text", "text": text}], {"a": [{"b": text}]}, [text]
        for name in ("unheard_of", "text", "content", "title", "description", "value"):
            if not (root and name in ROOT_NAMES):
                yield value | {name: text}
        for name in ("unheard_of", "content"):
            yield from (value | {name: each} for each in inner)
        if not root:
            yield value | {text: "x"}


ROUTER = Router(Policy([SHORT, LONG]), Bounded(TextEstimator()), TextRatios())


def decide(path: str, body: Any) -> Decision | None:
    request = parse_request(path, json.dumps(body).encode())
    return ROUTER.route(request) if isinstance(request, Request) else None


def is_left_out(body: Any, place: Place) -> bool:
    if REACHES_NO_PROMPT.intersection(place):
        return True
    value = body
    for key in place:
        if key == "summary" and value.get("content"):
            return True  # a reasoning item with content: its summary is for the client
        value = value[key]
        if isinstance(value, dict) and value.get("type") == "redacted_thinking":
            return True  # encrypted
    return False


CASES = [(path, body) for path, bodies in BODIES.items() for body in bodies]


@pytest.mark.parametrize(("path", "body"), CASES, ids=[path for path, _ in CASES])
def test_text_at_any_place_counts(path: str, body: dict[str, Any]) -> None:
    assert decide(path, body) is not None
    lost = []
    for place, value in places(body):
        if is_left_out(body, place):
            continue
        if isinstance(value, dict) and place in BESIDE_PARTS:
            continue
        root = not place
        for little, big in zip(
            with_text(value, LITTLE, root=root),
            with_text(value, BIG, root=root),
            strict=True,
        ):
            before = decide(path, put(body, place, little))
            after = decide(path, put(body, place, big))
            if after is None:
                continue
            added = after.prompt_tokens - (before.prompt_tokens if before else 0)
            if added < 5000 or after.pool is not LONG:
                lost.append((place, str(big)[:80], added, after.pool.name))
    assert lost == []
