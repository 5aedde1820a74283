"""Usage from a JSON body, and how the reader recognizes such a body."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.usage import (
    MAX_KEPT_BYTES,
    JsonUsageReader,
    LabelledJsonReader,
    SseUsageReader,
    usage_reader,
)

from .answers import USAGE, counts, event, read, splits


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [], "usage": USAGE}, (133, 16)),
        ({"usage": {"input_tokens": 7, "output_tokens": 3}}, (7, 3)),
        ({"usage": {"prompt_tokens": 5, "input_tokens": 9}}, (5, None)),
        ({"usage": None}, (None, None)),
        ({"usage": []}, (None, None)),
        ({"usage": {"prompt_tokens": "5"}}, (None, None)),
        ({"usage": {"prompt_tokens": 5.0}}, (None, None)),
        ({"usage": {"prompt_tokens": -5}}, (None, None)),
        ({"usage": {"prompt_tokens": True}}, (None, None)),
        ({"usage": {"prompt_tokens": 1 << 60}}, (None, None)),
        ([], (None, None)),
        (None, (None, None)),
        ({"error": {"message": "no"}}, (None, None)),
    ],
)
def test_usage_of_a_json_body_in_every_split(
    body: Any, expected: tuple[int | None, int | None]
) -> None:
    text = json.dumps(body).encode()

    for split in splits(text):
        usage, passed = read(JsonUsageReader(), *split)

        assert counts(usage) == expected
        assert passed == text


PER_TURN = {
    "input_tokens": 9100,
    "output_tokens": 300,
    "input_tokens_details": {"input_tokens_per_turn": [1000, 3000, 5100]},
}


@pytest.mark.parametrize(
    ("turns", "prompt_tokens"),
    [([1000, 3000, 5100], 1000), ([9100], 9100), ([], 9100), (["x"], 9100)],
)
def test_the_first_of_several_turns_is_the_prompt_that_was_routed(
    turns: list[Any], prompt_tokens: int
) -> None:
    details = {"input_tokens_per_turn": turns}
    body = {"usage": PER_TURN | {"input_tokens_details": details}}

    usage, _ = read(JsonUsageReader(), json.dumps(body).encode())

    assert counts(usage) == (prompt_tokens, 300)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "maximum context length is 8192 tokens", "code": 400}, 400),
        ({"message": "no", "code": "server_error"}, 500),
        ("no", 500),
        (None, None),
    ],
)
def test_an_error_inside_a_stream_is_counted_as_its_status(
    error: Any, status: int | None
) -> None:
    stream = event({"choices": [], "id": "1"}) + event({"error": error})

    for split in splits(stream):
        usage, passed = read(SseUsageReader(), *split)

        assert usage.error_status == status
        assert passed == stream


def large(tail: dict[str, Any]) -> bytes:
    return json.dumps({"text": "x" * 3 * MAX_KEPT_BYTES, **tail}).encode()


def in_chunks(body: bytes) -> list[bytes]:
    return [body[i : i + 65536] for i in range(0, len(body), 65536)]


@pytest.mark.parametrize("separators", [(",", ":"), (" , ", "\n:\t")])
def test_usage_of_a_large_json_body_is_at_its_end(separators: tuple[str, str]) -> None:
    text = "x" * 3 * MAX_KEPT_BYTES
    body = json.dumps(
        {"note": '"usage": {}', "text": text, "usage": USAGE, "extra": None},
        separators=separators,
    ).encode()

    assert counts(read(JsonUsageReader(), *in_chunks(body))[0]) == (133, 16)
    assert counts(read(JsonUsageReader(), body)[0]) == (133, 16)


@pytest.mark.parametrize(
    "tail",
    [
        {},
        {"usage": None},
        {"usage": "much"},
        {"usage": {"prompt_tokens": "x" * 5000}},
        {"note": '"usage":{"prompt_tokens":1}'},
    ],
)
def test_a_large_json_body_without_usage(tail: dict[str, Any]) -> None:
    assert counts(read(JsonUsageReader(), *in_chunks(large(tail)))[0]) == (None, None)


def test_a_large_json_body_keeps_only_its_tail() -> None:
    reader = JsonUsageReader()
    for part in in_chunks(b"x" * 40 * MAX_KEPT_BYTES):
        reader.feed(part)

    assert len(reader._kept) <= 2 * MAX_KEPT_BYTES


@settings(max_examples=50)
@given(body=st.binary(max_size=60))
def test_no_body_raises(body: bytes) -> None:
    read(JsonUsageReader(), body)
    read(JsonUsageReader(), b'{"usage":' + body)
    read(SseUsageReader(), b'data: {"usage":' + body + b"\n\n")


@pytest.mark.parametrize("key", ["response", "message", "usage", "delta"])
@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deep_nesting_does_not_raise(key: str, depth: int) -> None:
    body = f'{{"{key}":'.encode() * depth + b'{"usage":{}}' + b"}" * depth

    read(JsonUsageReader(), body)
    read(SseUsageReader(), b"data: " + body + b"\n\n")
    read(JsonUsageReader(), b"x" * 3 * MAX_KEPT_BYTES, body)


# Truncated answers.


@pytest.mark.parametrize(
    ("message", "truncated"),
    [
        ({"choices": [{"finish_reason": "length"}]}, True),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, True),
        ({"choices": [{"finish_reason": "stop"}]}, False),
        ({"choices": [{"text": 'finish_reason "length"'}]}, False),
        ({"stop_reason": "max_tokens"}, True),
        ({"stop_reason": "end_turn"}, False),
        ({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}, True),
        ({"status": "incomplete"}, True),
        ({"type": "response.incomplete", "response": {"status": "incomplete"}}, True),
        ({"choices": "length"}, False),
        ({"choices": ["length"]}, False),
    ],
)
def test_output_that_stopped_at_a_limit(
    message: dict[str, Any], truncated: bool
) -> None:
    body = json.dumps(message).encode()

    assert read(JsonUsageReader(), body)[0].truncated is truncated
    assert read(SseUsageReader(), event(message))[0].truncated is truncated


def test_a_large_json_body_that_stopped_at_a_limit() -> None:
    cut = {"choices": [{"finish_reason": "length"}], "usage": USAGE}

    assert read(JsonUsageReader(), *in_chunks(large(cut)))[0].truncated
    assert not read(JsonUsageReader(), *in_chunks(large({"usage": USAGE})))[0].truncated


# How the reader is chosen.


@pytest.mark.parametrize(
    ("content_type", "reader"),
    [
        ("application/json", LabelledJsonReader),
        ("application/json; charset=utf-8", LabelledJsonReader),
        ("Application/JSON ;x", LabelledJsonReader),
        ("text/event-stream", SseUsageReader),
        ("text/event-stream; charset=utf-8", SseUsageReader),
        ("text/plain", type(None)),
        ("audio/mpeg", type(None)),
        ("", type(None)),
    ],
)
def test_reader_of_a_content_type(content_type: str, reader: type) -> None:
    assert type(usage_reader(content_type)) is reader


STREAM = b"".join(
    [
        event({"choices": [{"index": 0, "delta": {"content": "a"}}]}),
        event({"choices": [], "usage": USAGE}),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize("lead", [b"", b"\r\n\r\n", b": ping\n\n", b"event: message\n"])
def test_a_stream_that_is_labelled_json_is_read_as_a_stream(lead: bytes) -> None:
    """vLLM's example proxy for prefill and decode sends such a stream."""
    for split in splits(lead + STREAM):
        usage, passed = read(LabelledJsonReader(), *split)
        assert counts(usage) == (133, 16)
        assert passed == lead + STREAM
    _, passed = read(LabelledJsonReader(drop_usage_chunk=True), lead + STREAM)
    assert b'"usage"' not in passed
    assert passed.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("lead", [b"", b" \r\n\t", b"\n" * 70])
def test_a_document_that_is_labelled_json_is_read_as_one(lead: bytes) -> None:
    body = lead + json.dumps({"choices": [], "usage": USAGE}).encode()
    for split in splits(body):
        usage, passed = read(LabelledJsonReader(drop_usage_chunk=True), *split)
        assert counts(usage) == (133, 16)
        assert passed == body
    assert counts(read(LabelledJsonReader(), lead)[0]) == (None, None)
