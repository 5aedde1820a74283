"""Usage from server-sent events, however the bytes are split."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange.usage import (
    MAX_KEPT_BYTES,
    SseUsageReader,
)

from .answers import (
    LINE_ENDS,
    USAGE,
    USAGE_CHUNK,
    chunk,
    counts,
    read,
    splits,
    stream,
)


@LINE_ENDS
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [chunk(), USAGE_CHUNK, "[DONE]"], (133, 16), id="usage-chunk-of-its-own"
        ),
        pytest.param(
            [chunk(), chunk(usage=USAGE), "[DONE]"],
            (133, 16),
            id="on-a-chunk-with-text",
        ),
        pytest.param(
            [chunk(usage=None), chunk(usage=USAGE), "[DONE]"],
            (133, 16),
            id="null-first",
        ),
        pytest.param(
            [
                chunk(usage={"prompt_tokens": 133, "completion_tokens": n})
                for n in (1, 2, 16)
            ],
            (133, 16),
            id="growing-usage-on-each-chunk",
        ),
        pytest.param([chunk(), "[DONE]"], (None, None), id="no-usage"),
        pytest.param([chunk(usage={"prompt_tokens": 9})], (9, None), id="partial"),
        pytest.param(
            [
                {
                    "type": "message_start",
                    "message": {"usage": {"input_tokens": 25, "output_tokens": 1}},
                },
                {"type": "content_block_delta", "delta": {"text": "Hi"}},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn"},
                    "usage": {"output_tokens": 15},
                },
                {"type": "message_stop"},
            ],
            (25, 15),
            id="anthropic",
        ),
        pytest.param(
            [
                {
                    "type": "message_start",
                    "message": {
                        "usage": {
                            "input_tokens": 5,
                            "cache_read_input_tokens": 20,
                            "cache_creation_input_tokens": 100,
                        }
                    },
                },
                {"type": "message_delta", "usage": {"output_tokens": 15}},
            ],
            (125, 15),
            id="anthropic-cached",
        ),
        pytest.param(
            [
                {"type": "response.created", "response": {"usage": None}},
                {"type": "response.output_text.delta", "delta": "Hi"},
                {
                    "type": "response.completed",
                    "response": {"usage": {"input_tokens": 7, "output_tokens": 3}},
                },
            ],
            (7, 3),
            id="responses",
        ),
    ],
)
def test_usage_of_a_stream_in_every_split(
    events: list[Any], expected: tuple[int | None, int | None], line_end: str
) -> None:
    body = stream(*events, line_end=line_end)

    for split in splits(body):
        usage, passed = read(SseUsageReader(), *split)

        assert counts(usage) == expected
        assert passed == body


def test_a_stream_that_ends_without_its_empty_line() -> None:
    body = stream(chunk(), USAGE_CHUNK).rstrip(b"\n")

    for split in splits(body):
        assert counts(read(SseUsageReader(), *split)[0]) == (133, 16)


def test_an_event_of_several_data_lines() -> None:
    body = b'event: x\ndata: {"usage":\nid: 3\ndata:{"prompt_tokens": 4}}\n\n'

    assert read(SseUsageReader(), body)[0].prompt_tokens == 4


@pytest.mark.parametrize(
    "first",
    [b"\n\n", b": keep-alive\n\n", b"data\n\n", b"data: {\n\n", b"retry: 1\n\n"],
)
def test_other_lines_and_bad_events_pass(first: bytes) -> None:
    body = first + stream(USAGE_CHUNK)

    usage, passed = read(SseUsageReader(drop_usage_chunk=True), body)

    assert usage.prompt_tokens == 133
    assert passed == first


def test_usage_quoted_in_the_text_is_not_usage() -> None:
    quoted = chunk(note=json.dumps({"usage": {"prompt_tokens": 666}}))

    assert counts(read(SseUsageReader(), stream(quoted))[0]) == (None, None)


@LINE_ENDS
def test_the_injected_chunk_is_taken_out_in_every_split(line_end: str) -> None:
    kept = stream(chunk(usage=None), chunk(), line_end=line_end)
    done = stream("[DONE]", line_end=line_end)
    body = kept + stream(USAGE_CHUNK, line_end=line_end) + done

    for split in splits(body):
        usage, passed = read(SseUsageReader(drop_usage_chunk=True), *split)

        assert usage.prompt_tokens == 133
        assert passed == kept + done


@settings(max_examples=50)
@given(
    cuts=st.sets(st.integers(1, 400)), line_end=st.sampled_from(["\n", "\r\n", "\r"])
)
def test_the_injected_chunk_is_taken_out_in_any_split(
    cuts: set[int], line_end: str
) -> None:
    kept = stream(chunk(), "", chunk(), line_end=line_end)
    body = kept + stream(USAGE_CHUNK, line_end=line_end)
    places = [0, *sorted(c for c in cuts if c < len(body)), len(body)]
    parts = [body[a:b] for a, b in itertools.pairwise(places)]

    assert read(SseUsageReader(drop_usage_chunk=True), *parts)[1] == kept


@LINE_ENDS
@pytest.mark.parametrize("drop", [True, False])
def test_a_whole_stream_in_one_piece(line_end: str, drop: bool) -> None:
    kept = stream(*[chunk(usage=None)] * 2000, line_end=line_end)
    injected = stream(USAGE_CHUNK, line_end=line_end)
    done = stream("[DONE]", line_end=line_end)

    reader = SseUsageReader(drop_usage_chunk=drop)
    usage, passed = read(reader, kept + injected + done)

    assert usage.prompt_tokens == 133
    assert reader.complete
    assert passed == kept + (b"" if drop else injected) + done


def test_usage_on_a_chunk_with_text_stays() -> None:
    body = stream(chunk(usage=USAGE), "[DONE]")

    assert read(SseUsageReader(drop_usage_chunk=True), body)[1] == body


def test_each_event_passes_as_soon_as_it_is_whole() -> None:
    reader = SseUsageReader(drop_usage_chunk=True)

    assert reader.feed(stream(chunk())) == stream(chunk())
    assert reader.feed(b"data: {") == b""
    assert reader.feed(b"}\n\n") == b"data: {}\n\n"


@settings(max_examples=60)
@given(
    body=st.lists(
        st.sampled_from(
            [b"\n", b"\r", b"\r\n", b"data: ", b'{"usage"', b":", b"x", b"}", b"[DONE]"]
        )
    ).map(b"".join),
    cut=st.integers(0, 60),
)
def test_no_stream_raises_or_loses_a_byte(body: bytes, cut: int) -> None:
    for drop in (False, True):
        reader = SseUsageReader(drop_usage_chunk=drop)

        assert read(reader, body[:cut], body[cut:])[1] == body


def test_an_event_longer_than_what_is_kept_passes_and_the_next_is_read() -> None:
    long = b"data: " + b"x" * MAX_KEPT_BYTES + b"\n\n"
    body = long + stream(USAGE_CHUNK)

    for cut in range(len(long) - 4, len(long) + 4):
        for drop in (False, True):
            reader = SseUsageReader(drop_usage_chunk=drop)
            usage, passed = read(reader, body[:cut], body[cut:])

            assert usage.prompt_tokens == 133, cut
            assert passed == (long if drop else body)


def test_a_stream_without_events_is_not_kept() -> None:
    reader = SseUsageReader(drop_usage_chunk=True)
    held = 0
    for _ in range(64):
        held += 65536 - len(reader.feed(b"x" * 65536))

        assert held <= MAX_KEPT_BYTES + 65536


def test_what_follows_an_event_that_is_too_long_is_read_whatever_is_between() -> None:
    reader = SseUsageReader()
    reader.feed(b"data: " + b"x" * MAX_KEPT_BYTES * 2)
    reader.feed(b"x\n\n" + stream(chunk()))  # contains no usage

    assert read(reader, stream(USAGE_CHUNK))[0].prompt_tokens == 133


def test_the_lines_of_an_event_that_is_too_long_are_no_events() -> None:
    reader = SseUsageReader()
    reader.feed(b"data: " + b"x" * MAX_KEPT_BYTES * 2 + b"\nabc")

    assert read(reader, b"\n" + stream(USAGE_CHUNK))[0].prompt_tokens is None


@LINE_ENDS
@pytest.mark.parametrize(
    "last",
    [
        "data: [DONE]",
        "data:[DONE]",
        "event: message_stop\ndata: {}",
        "event: response.completed\ndata: {}",
        "event: response.incomplete\ndata: {}",
    ],
)
def test_a_stream_says_that_it_is_over(last: str, line_end: str) -> None:
    chunks = stream(*[chunk()] * 9, line_end=line_end)
    end = f"{last}\n\n".replace("\n", line_end).encode()
    beyond = stream(chunk(), line_end=line_end)[:20]

    for pieces in ([chunks, end], [chunks + end], [chunks, end[:9], end[9:]]):
        reader = SseUsageReader()
        for piece in pieces:
            assert not reader.complete
            reader.feed(piece)
        reader.feed(b"\n" if line_end == "\r" else b"")  # it was not half of a CR LF
        assert reader.complete

    reader = SseUsageReader()
    reader.feed(chunks + end + beyond)
    assert not reader.complete  # some bytes have not been passed on
