import json
from typing import Any

import pytest

from extproc.demo.standin.request import Job, ServedApi
from extproc.demo.standin.response import Answer, Responder


def responder(
    endpoint: ServedApi, *, include_usage: bool = False, cut: bool = True
) -> Responder:
    job = Job(endpoint, "m", (7,), 1, 3, False, True, include_usage, 1)
    return Responder(job, [Answer(0, 3, cut, 1)])


def stream(it: Responder) -> list[Any]:
    """Return all data events of a stream, parsed."""
    written = list(it.begin())
    for _ in range(3):
        it.answers[0].produced += 1
        written.append(it.token(it.answers[0]))
    written += it.end()
    text = b"".join(written).decode()
    data = [
        line.removeprefix("data: ")
        for line in text.splitlines()
        if line.startswith("data: ")
    ]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def done(it: Responder) -> dict[str, Any]:
    it.answers[0].produced = 3
    return it.document()


def test_a_chat_stream_says_what_the_document_says() -> None:
    events = stream(responder(ServedApi.CHAT))
    assert events[-1] == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    text = "".join(choice["delta"]["content"] for choice in choices)
    assert text == done(responder(ServedApi.CHAT))["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices] == [
        None,
        None,
        None,
        "length",
    ]
    assert not any("usage" in event for event in events[:-1])


@pytest.mark.parametrize("endpoint", [ServedApi.CHAT, ServedApi.COMPLETIONS])
def test_usage_comes_last_and_alone_where_it_was_asked_for(endpoint: ServedApi) -> None:
    *others, usage, last = stream(responder(endpoint, include_usage=True))
    assert last == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "total_tokens": 10,
        "completion_tokens": 3,
    }
    assert not any("usage" in event for event in others)


def test_a_messages_stream_has_anthropic_s_events() -> None:
    events = stream(responder(ServedApi.MESSAGES))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"] == {"input_tokens": 7, "output_tokens": 0}
    assert events[-2]["usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


def test_a_responses_stream_ends_with_the_whole() -> None:
    events = stream(responder(ServedApi.RESPONSES, cut=False))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    whole = events[-1]["response"]
    assert whole["usage"] == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert whole["status"] == "completed"


@pytest.mark.parametrize(("cut", "reason"), [(True, "length"), (False, "stop")])
def test_why_an_answer_ended(cut: bool, reason: str) -> None:
    assert (
        done(responder(ServedApi.CHAT, cut=cut))["choices"][0]["finish_reason"]
        == reason
    )


def test_an_embedding_counts_its_prompt_only() -> None:
    document = done(responder(ServedApi.EMBEDDINGS))
    assert document["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert len(document["data"]) == 1
