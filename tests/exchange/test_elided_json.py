"""Elided JSON of a large body: no loss, no double counting, and bounded work."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.exchange.body_parser import BodyParser, parse_request
from extproc.exchange.elided_json import ElidedJson, Span
from extproc.exchange.json_elider import (
    CHUNK_BYTES,
    DIRECT_BYTES,
    LONG_BYTES,
    MAX_ELEMENTS,
    MAX_OUTLINE_BYTES,
    SIMPLE_BYTES,
    JsonElider,
    TooIntricate,
    is_large,
)
from extproc.exchange.openai import ENDPOINTS, NotARequestError, parse_source
from extproc.exchange.paths import ANY_PREFIX
from extproc.exchange.source import Source, Whole
from extproc.routing.features import SAMPLE_BYTES, measure
from extproc.routing.policy import Reason
from extproc.routing.request import Request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

LONG = LONG_BYTES + 1


def elided_of(body: bytes, chunk_bytes: int = CHUNK_BYTES) -> ElidedJson:
    elider = JsonElider(body, chunk_bytes)
    while elider.step():
        pass
    return elider.elided()


def expanded(value: Any, elided: ElidedJson, body: bytes) -> Any:
    """Return the value of the elided JSON, with the elided parts restored."""
    match value:
        case dict():
            return {
                expanded(k, elided, body): expanded(v, elided, body)
                for k, v in value.items()
            }
        case list():
            return [expanded(each, elided, body) for each in value]
        case str() if found := re.fullmatch("\x7f([0-9]+)\x7f", value):
            piece = elided.spans[int(found[1])]
            raw = body[piece.start : piece.stop]
            if piece.items:
                assert piece.size_bytes == len(raw)
                content = json.loads(b"[%b]" % raw)
                assert elided.items(value) == piece.items == len(content)
            else:
                content = json.loads(b'"%b"' % raw)
                assert piece.size_bytes == len(content.encode("utf-8", "surrogatepass"))
                assert elided.size_bytes(value) == piece.size_bytes
                assert elided.items(value) == 0
            return content
    return value


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))
HARD = st.text(st.sampled_from('\\"/u0\n,[]{}:é漢🙂'))
STRING = (TEXT | HARD).flatmap(
    lambda text: st.sampled_from([text, (text or "x") * (LONG // len(text or "x") + 1)])
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | STRING
VALUE = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(STRING, inner, max_size=3)
        | st.lists(st.integers(0, 200_000), min_size=100, max_size=200)
    ),
    max_leaves=12,
)
CHUNK = st.integers(1, 60) | st.integers(500, 3000)


@settings(max_examples=100)
@given(value=VALUE, ascii_only=st.booleans(), spaces=st.booleans(), chunk_bytes=CHUNK)
def test_the_outline_with_what_it_leaves_out_is_the_body(
    value: Any, ascii_only: bool, spaces: bool, chunk_bytes: int
) -> None:
    separators = (" , ", " : ") if spaces else (",", ":")
    body = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()

    elided = elided_of(body, chunk_bytes)

    assert expanded(json.loads(elided.content), elided, body) == value


@settings(max_examples=100)
@given(body=st.binary(max_size=300), chunk_bytes=CHUNK)
def test_no_bytes_raise(body: bytes, chunk_bytes: int) -> None:
    elided = elided_of(body, chunk_bytes)

    with contextlib.suppress(NotARequestError):
        parse_source(ENDPOINTS[CHAT], elided)
    elided.excerpt(elided.content.decode(errors="replace"))


@settings(max_examples=40)
@given(text=HARD, repeated=st.integers(1, 400))
def test_a_window_of_escaped_text_is_of_that_text(text: str, repeated: int) -> None:
    whole = (text or "é") * (repeated + LONG)
    elided = elided_of(json.dumps([whole]).encode())
    (reference,) = json.loads(elided.content)

    excerpt, missing_bytes = elided.excerpt(reference)

    assert len(excerpt) + missing_bytes == len(whole.encode())
    assert len(excerpt) <= SAMPLE_BYTES
    if not missing_bytes:
        assert excerpt == whole.encode()
    assert set(excerpt.decode(errors="ignore")) <= set(whole)


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content} for content in contents]
    return {"model": "m", "messages": messages, **more}


PROSE = "It was a bright cold day in April, and the clocks were striking thirteen. "
TOOLS = [
    {"type": "function", "function": {"name": f"f{n}", "description": PROSE * 20}}
    for n in range(3)
]
IMAGE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64," + "A" * LONG},
}
CALL = {"function": {"name": "f", "arguments": {"code": PROSE * 20}}}


def the_same(path: str, body: Any) -> tuple[Request, Request]:
    raw = json.dumps(body, ensure_ascii=False).encode()
    whole = parse_source(ENDPOINTS[path], Whole(raw))
    from_elided = parse_source(ENDPOINTS[path], elided_of(raw))
    return whole, from_elided


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("Hi", max_tokens=5, stream=True)),
        (CHAT, chat(PROSE * 20, "yes", PROSE * 30)),
        (CHAT, chat(PROSE * 20, tools=TOOLS)),
        (CHAT, chat([{"type": "text", "text": PROSE * 20}, IMAGE, IMAGE])),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [CALL]}]}),
        ("/v1/messages", chat("Hi", system=PROSE * 20, max_tokens=5)),
        ("/v1/responses", {"input": PROSE * 20, "instructions": PROSE * 9}),
        (COMPLETIONS, {"prompt": PROSE * 20, "n": 3}),
        (COMPLETIONS, {"prompt": list(range(900))}),
        (COMPLETIONS, {"prompt": [list(range(900)), list(range(901)), [1]]}),
        (COMPLETIONS, {"prompt": ["short", PROSE * 30, PROSE * 20]}),
        (EMBEDDINGS, {"input": [PROSE * 20] * 40}),
    ],
)
def test_a_request_is_the_same_by_its_outline(path: str, body: Any) -> None:
    whole, from_elided = the_same(path, body)

    ends = whole.prompt.message_ends  # unknown for a sample
    prompt = replace(from_elided.prompt, message_ends=ends)
    assert replace(from_elided, prompt=prompt) == whole


@pytest.mark.parametrize("copies", [1, 7, 300])
def test_features_are_the_same_by_the_outline(copies: int) -> None:
    text = "".join(f"{n}. {PROSE}" for n in range(400))

    whole, from_elided = the_same(CHAT, chat(*[text] * copies, tools=TOOLS * 9))

    assert from_elided.prompt.missing_bytes > 0
    expected = measure(whole.prompt, whole.body_bytes)
    found = measure(from_elided.prompt, from_elided.body_bytes)
    assert (found.text_bytes, found.tools_bytes) == (
        expected.text_bytes,
        expected.tools_bytes,
    )
    assert (found.terms == expected.terms).all()
    assert found.classes == expected.classes


@pytest.mark.parametrize(
    "text", [PROSE, "a\tb\n", 'say "so"; ', "日本語のテキスト。", "ça 🙂 "]
)
def test_escaped_text_is_counted_as_what_it_stands_for(text: str) -> None:
    raw = json.dumps(chat(text * 4000)).encode()

    request = parse_source(ENDPOINTS[CHAT], elided_of(raw))
    plain = parse_source(ENDPOINTS[CHAT], Whole(raw))

    assert request is not None
    assert plain is not None
    found = measure(request.prompt, 0)
    expected = measure(plain.prompt, 0)
    assert found.text_bytes == expected.text_bytes == sum(found.classes)
    error = abs(found.terms - expected.terms).sum() / expected.text_bytes
    assert error < 0.03  # the windows are at slightly different positions


def test_what_looks_like_a_reference_is_none() -> None:
    forged = "\x7f0\x7f"
    body = chat(PROSE * 20, forged, [IMAGE, {"type": "text", "text": forged}])
    for raw in (
        json.dumps(body).encode(),
        json.dumps(body).replace("\x7f", "\\u007f").encode(),
        json.dumps(body).replace("\x7f", "\\u007F").encode(),
    ):
        request = parse_source(ENDPOINTS[CHAT], elided_of(raw))

        assert request is not None
        assert request.prompt.text.decode() == f"{PROSE * 20}\n?0?\n?0?"


@pytest.mark.parametrize("tail", [b"", b'"', b'"}', b"\\", b'\\"', b'"]}]}'])
def test_a_body_that_was_cut_off_is_no_request(tail: bytes) -> None:
    head = b'{"messages":[{"content":"' + b"x" * 400_000

    assert parse_request(CHAT, head + tail) is Reason.UNPARSABLE


# Limits on size and work.

FLOODS = {
    "messages": b'{"messages":[' + b"{}," * 350_000 + b"{}]}",
    "parts": b'{"messages":[{"content":[' + b'"",' * 350_000 + b'""]}]}',
    "text parts": b'{"messages":[{"content":['
    + b'{"type":"text","text":"a"},' * 40_000
    + b"{}]}]}",
    "nesting": b'{"messages":' + b"[" * 1_000_000,
    "objects": b'{"messages":' + b'{"a":' * 200_000,
    "tools": b'{"tools":[' + b'{"function":{"name":"f"}},' * 40_000 + b"{}]}",
    "lists": b'{"prompt":[' + b"[1]," * 250_000 + b"[1]]}",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_elements_is_not_gathered(flood: bytes) -> None:
    reading = BodyParser(ANY_PREFIX.find(CHAT), flood, "", 2 << 20)
    steps = 1
    while reading.step():
        steps += 1

    assert reading.result is Reason.TOO_LARGE
    assert steps * CHUNK_BYTES <= 6 * MAX_ELEMENTS * len(b'{"function":') / 2
    assert parse_request(CHAT, flood, "", 2 << 20) is Reason.TOO_LARGE


@pytest.mark.parametrize("size", [SIMPLE_BYTES, 100_000, DIRECT_BYTES])
def test_no_body_that_is_parsed_as_it_is_has_more_elements(size: int) -> None:
    for element in (b"{},", b'"",', b"1,", b"[],"):
        body = b'{"messages":[' + element * (size // len(element) - 9) + b"{}]}"
        assert len(body) <= size
        assert is_large(body) or body.count(b",") <= MAX_ELEMENTS // 2


def test_short_texts_are_bounded_as_well() -> None:
    body = json.dumps(chat(*[PROSE * 6] * 4000)).encode()
    assert len(PROSE * 6) < LONG_BYTES

    with pytest.raises(TooIntricate):
        elided_of(body)
    assert len(elided_of(body[:900_000] + b'"').content) <= MAX_OUTLINE_BYTES


def test_token_ids_are_counted_without_being_read() -> None:
    body = json.dumps({"prompt": [151_643] * 300_000}).encode()

    elided = elided_of(body)
    request = parse_request(COMPLETIONS, body, max_body_bytes=len(body))

    assert len(elided.content) < 40
    assert isinstance(request, Request)
    assert request.prompt.token_ids == 300_000


@pytest.mark.parametrize(
    "text",
    [PROSE, "é", '"', "\\", "\n", "漢"],
    ids=["prose", "é", "quote", "\\", "nl", "漢"],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_parsed_of_a_long_text_does_not_grow(
    text: str, ascii_only: bool
) -> None:
    text *= 1_000_000 // len(text)
    body = json.dumps(chat(text), ensure_ascii=ascii_only).encode()

    reading = BodyParser(ANY_PREFIX.find(CHAT), body, "", len(body))
    steps = 1
    while reading.step():
        steps += 1

    assert len(elided_of(body).content) < 100
    assert isinstance(reading.result, Request)
    assert len(reading.result.prompt.text) <= SAMPLE_BYTES
    assert steps == -(-len(body) // CHUNK_BYTES)


def test_sources_say_the_same_of_plain_text() -> None:
    for source in (Whole(b"{}"), elided_of(b"{}")):
        checked: Source = source
        assert checked.content == b"{}"
        assert checked.body_bytes == 2
        assert checked.excerpt("é") == ("é".encode(), 0)
        assert checked.size_bytes("é") == 2
        assert checked.items("é") == 0


def test_left_out_knows_its_escapes() -> None:
    assert Span(5, 10, 3).is_escaped
    assert not Span(5, 10, 5).is_escaped
