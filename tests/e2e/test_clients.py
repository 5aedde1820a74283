"""The real client libraries, used as applications use them."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

LONG_TEXT = "all the words of a long story " * 3000
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def openai_client(client: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{client.envoy.url}/v1", api_key="none", max_retries=0
    ) as sdk:
        yield sdk


@pytest.fixture
def anthropic_client(client: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=client.envoy.url, api_key="none", max_retries=0
    ) as sdk:
        yield sdk


@pytest.mark.parametrize(
    ("text", "pool"),
    [("Hello", "vllm_short"), (LONG_TEXT, "vllm_long")],
    ids=["short", "long"],
)
def test_openai_chat(text: str, pool: str, openai_client: openai.OpenAI) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": text}], max_tokens=4
    )
    assert raw.headers["x-llm-served-by"] == pool
    completion = raw.parse()
    assert completion.choices[0].message.content
    assert completion.usage.completion_tokens <= 4


def test_openai_chat_stream(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    text = "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices
    )
    assert len(text.split()) == 6
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-2].choices[0].finish_reason == "length"


def test_openai_completions(openai_client: openai.OpenAI) -> None:
    completion = openai_client.completions.create(
        model="m", prompt=["Once", "upon"], max_tokens=3, n=2
    )
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]


def test_openai_responses(openai_client: openai.OpenAI) -> None:
    response = openai_client.responses.create(
        model="m", input="Hello there", max_output_tokens=5
    )
    assert response.output_text
    assert response.usage.input_tokens == 5


def test_openai_responses_stream(openai_client: openai.OpenAI) -> None:
    events = list(
        openai_client.responses.create(model="m", input="Hello there", stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    said = "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )
    assert said == events[-1].response.output_text


def test_openai_embeddings(openai_client: openai.OpenAI) -> None:
    embeddings = openai_client.embeddings.create(
        model="m", input=["a", "b"], encoding_format="float"
    )
    assert len(embeddings.data) == 2


def test_openai_sees_a_refusal_as_its_own_error(openai_client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="max_tokens must be at least 1"
    ) as caught:
        openai_client.chat.completions.create(model="m", messages=HELLO, max_tokens=0)
    assert caught.value.param == "max_tokens"


def test_openai_sees_the_long_pool_s_limit(openai_client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 65536 tokens"
    ):
        openai_client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": LONG_TEXT * 4}]
        )


def test_openai_lists_the_models(openai_client: openai.OpenAI) -> None:
    (model,) = openai_client.models.list().data
    assert model.max_model_len == 65536


@pytest.mark.parametrize(
    ("text", "pool"),
    [("Hello", "vllm_short"), (LONG_TEXT, "vllm_long")],
    ids=["short", "long"],
)
def test_anthropic_messages(
    text: str, pool: str, anthropic_client: anthropic.Anthropic
) -> None:
    raw = anthropic_client.messages.with_raw_response.create(
        model="m",
        max_tokens=4,
        system="Be brief.",
        messages=[{"role": "user", "content": text}],
    )
    assert raw.headers["x-llm-served-by"] == pool
    message = raw.parse()
    assert message.content[0].text
    assert message.usage.input_tokens > 4


def test_anthropic_stream(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="m", max_tokens=6, messages=HELLO, extra_body={"ignore_eos": True}
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert len(text.split()) == 6
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 6


def test_anthropic_sees_a_refusal_as_its_own_error(
    anthropic_client: anthropic.Anthropic,
) -> None:
    with pytest.raises(
        anthropic.BadRequestError, match="max_tokens must be at least 1"
    ):
        anthropic_client.messages.create(model="m", max_tokens=0, messages=HELLO)
