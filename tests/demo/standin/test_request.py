import json
from typing import Any

import pytest

from extproc.demo.standin.request import Job, RequestRefusedError, ServedApi, read_job
from extproc.demo.standin.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
WINDOW = 64


@pytest.fixture
def read(tokenizer: Tokenizer) -> Any:
    def read(endpoint: ServedApi, body: Any) -> Job:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return read_job(endpoint, raw, tokenizer, WINDOW)

    return read


def test_a_chat_is_counted(read: Any) -> None:
    job = read(
        ServedApi.CHAT,
        {"model": "m", "messages": HELLO, "max_tokens": 5, "n": 2, "stream": True},
    )
    assert (job.prompt_tokens, job.max_tokens, job.choices, job.stream) == (
        (4,),
        5,
        2,
        True,
    )
    assert not job.include_usage


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": None}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_chat(
    body: dict[str, Any], limit: int | None, read: Any
) -> None:
    assert read(ServedApi.CHAT, {"messages": HELLO} | body).max_tokens == limit


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("Hello", (2,)),
        (["Hello", "Hello"], (2, 2)),
        ([1, 2, 3], (3,)),
        ([[1, 2], [3]], (2, 1)),
    ],
)
def test_prompts_of_every_form(prompt: Any, counts: tuple[int, ...], read: Any) -> None:
    assert read(ServedApi.COMPLETIONS, {"prompt": prompt}).prompt_tokens == counts
    assert read(ServedApi.EMBEDDINGS, {"input": prompt}).prompt_tokens == counts


def test_a_system_prompt_counts_wherever_it_stands(read: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    chat = read(ServedApi.CHAT, {"messages": [system, *HELLO]})
    messages = read(ServedApi.MESSAGES, {"messages": HELLO, "system": "Be brief."})
    parts = read(
        ServedApi.MESSAGES,
        {"messages": HELLO, "system": [{"type": "text", "text": "Be brief."}]},
    )
    responses = read(
        ServedApi.RESPONSES, {"input": "Hello", "instructions": "Be brief."}
    )
    assert (
        chat.prompt_tokens
        == messages.prompt_tokens
        == parts.prompt_tokens
        == responses.prompt_tokens
    )


@pytest.mark.parametrize(
    ("tokens", "limit", "message", "parameter"),
    [
        (
            WINDOW + 2,
            1,
            "maximum context length is 64 tokens. However, your prompt contains 66 input",
            "input_tokens",
        ),
        (
            WINDOW + 1,
            1,
            "your prompt contains at least 65 input tokens",
            "input_tokens",
        ),
        (
            WINDOW,
            1,
            r"\(length 64\) plus the number of requested output tokens \(at least 1\) is longer",
            None,
        ),
        (
            1,
            WINDOW + 1,
            "max_tokens=65 cannot be greater than max_model_len=64. Please request fewer",
            "max_tokens",
        ),
    ],
    ids=["over", "just over", "full", "limit"],
)
def test_what_does_not_fit_is_refused_in_vllm_s_words(
    tokens: int, limit: int, message: str, parameter: str | None, read: Any
) -> None:
    with pytest.raises(RequestRefusedError, match=message) as caught:
        read(
            ServedApi.COMPLETIONS, {"prompt": list(range(tokens)), "max_tokens": limit}
        )
    answer: Any = caught.value.body(ServedApi.COMPLETIONS)
    assert answer["error"]["param"] == parameter


def test_what_fits_only_without_its_answer_is_taken(read: Any) -> None:
    """The request is accepted and its output will be truncated, as in vLLM."""
    job = read(ServedApi.COMPLETIONS, {"prompt": list(range(60)), "max_tokens": 60})
    assert job.max_tokens == 60


def test_an_embedding_may_fill_the_window(read: Any) -> None:
    assert read(ServedApi.EMBEDDINGS, {"input": list(range(WINDOW))}).prompt_tokens == (
        WINDOW,
    )


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (ServedApi.CHAT, b"{"),
        (ServedApi.CHAT, b"[" * 100_000),
        (ServedApi.CHAT, b"[]"),
        (ServedApi.CHAT, b"\xff"),
        (ServedApi.CHAT, {}),
        (ServedApi.CHAT, {"messages": []}),
        (ServedApi.CHAT, {"messages": ["Hello"]}),
        (ServedApi.CHAT, {"messages": HELLO, "max_tokens": 0}),
        (ServedApi.CHAT, {"messages": HELLO, "max_tokens": "5"}),
        (ServedApi.CHAT, {"messages": HELLO, "n": True}),
        (ServedApi.COMPLETIONS, {"prompt": []}),
        (ServedApi.COMPLETIONS, {"prompt": [1, "a"]}),
        (ServedApi.COMPLETIONS, {"prompt": {"a": 1}}),
        (ServedApi.RESPONSES, {"input": 7}),
    ],
)
def test_what_is_no_request_is_refused(
    endpoint: ServedApi, body: Any, read: Any
) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read(endpoint, body)
    assert caught.value.status == 400


def test_a_refusal_has_its_api_s_shape() -> None:
    refused = RequestRefusedError("no", parameter="p")
    assert refused.body(ServedApi.CHAT) == {
        "error": {"message": "no", "type": "BadRequestError", "param": "p", "code": 400}
    }
    assert refused.body(ServedApi.MESSAGES) == {
        "type": "error",
        "error": {"type": "BadRequestError", "message": "no"},
    }
