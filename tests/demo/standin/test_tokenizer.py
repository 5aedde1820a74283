from pathlib import Path
from typing import Any

import mistral_common
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from extproc.demo.standin.tokenizer import WORDS, Tokenizer

USER = {"role": "user", "content": "How many bytes are in a kibibyte?"}
ASSISTANT = {"role": "assistant", "content": "1024."}
SYSTEM = {"role": "system", "content": "You are terse."}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    },
}


@pytest.fixture(scope="session")
def mistral() -> MistralTokenizer:
    """Return the vocabulary's own template, from its original library."""
    package = Path(mistral_common.__file__).parent
    return MistralTokenizer.from_file(str(package / "data/tekken_240911.json"))


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([USER], []),
        ([SYSTEM, USER], []),
        ([USER, ASSISTANT, USER], []),
        ([SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER], []),
        ([USER], [TOOL]),
        ([{"role": "user", "content": "漢字 и кириллица 😀" * 50}], []),
    ],
    ids=["one", "system", "three", "six", "tools", "scripts"],
)
def test_a_chat_counts_as_in_the_library_s_template(
    messages: list[Any],
    tools: list[Any],
    mistral: MistralTokenizer,
    tokenizer: Tokenizer,
) -> None:
    request = ChatCompletionRequest.from_openai(messages=messages, tools=tools or None)
    expected = len(mistral.encode_chat_completion(request).tokens)
    # Where two parts join, the start of a text may need one token more or one token
    # less.
    assert tokenizer.count_chat(messages, tools) == pytest.approx(
        expected, abs=len(messages) + 6 * len(tools)
    )


def test_content_in_parts_counts_as_its_text(tokenizer: Tokenizer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}]
    assert tokenizer.count_chat(parts) == tokenizer.count_chat([USER])


def test_an_image_costs_a_constant(tokenizer: Tokenizer) -> None:
    image = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + "A" * 9000},
    }
    with_image = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, image]}]
    without = [{"role": "user", "content": "Hi"}]
    assert tokenizer.count_chat(with_image) == tokenizer.count_chat(without) + 1024


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 7},
        {},
    ],
)
def test_odd_messages_count_as_empty(
    message: dict[str, Any], tokenizer: Tokenizer
) -> None:
    assert tokenizer.count_chat([message]) == 3


def test_tool_calls_and_results_count(tokenizer: Tokenizer) -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "42 degrees"}
    assert (
        tokenizer.count_chat([USER, call, result]) > tokenizer.count_chat([USER]) + 10
    )


def test_each_spoken_word_is_one_token(tokenizer: Tokenizer) -> None:
    assert {tokenizer.count(word) for word in WORDS} == {1}
