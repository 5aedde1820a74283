"""The prompt in every format of every API."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.routing.request import OptionalKind, OptionalText, Prompt

from .parsed import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    parse,
    read,
    user,
)

JPEG = "data:image/jpeg;base64," + "/9j/4AAQ" * 5000


def text_of(path: str, **body: Any) -> str:
    return parse(path, **body).prompt.text.decode()


@pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [
        pytest.param(
            CHAT,
            {"messages": [{"role": "system", "content": "Be brief."}, user("Hi")]},
            Prompt(b"Be brief.\nHi", messages=2),
            id="chat",
        ),
        pytest.param(
            CHAT,
            {
                "messages": [
                    user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
                ]
            },
            Prompt(b"a\nb"),
            id="chat-parts",
        ),
        pytest.param(COMPLETIONS, {"prompt": "Once"}, Prompt(b"Once"), id="string"),
        pytest.param(
            COMPLETIONS,
            {"prompt": ["a", "the longest of them", "bc"]},
            Prompt(b"the longest of them"),
            id="strings",
        ),
        pytest.param(
            COMPLETIONS, {"prompt": [5, 6, 7]}, Prompt(b"", token_ids=3), id="token-ids"
        ),
        pytest.param(
            COMPLETIONS,
            {"prompt": [[1], [1, 2, 3, 4], [1, 2]]},
            Prompt(b"", token_ids=4),
            id="lists-of-token-ids",
        ),
        pytest.param(
            EMBEDDINGS,
            {"input": ["a", {"type": "text", "text": "a part"}]},
            Prompt(b"a part"),
            id="embedding-parts",
        ),
        pytest.param(
            RESPONSES,
            {"instructions": "Be brief.", "input": "Hi"},
            Prompt(b"Be brief.\nHi", messages=2),
            id="responses-string",
        ),
        pytest.param(
            RESPONSES,
            {
                "input": [
                    user([{"type": "input_text", "text": "Hi"}]),
                    {"type": "function_call", "name": "f", "arguments": '{"x":1}'},
                    {"type": "function_call_output", "call_id": "c", "output": "42"},
                ]
            },
            Prompt(b'Hi\nf\n{"x":1}\n42', messages=3),
            id="responses-items",
        ),
        pytest.param(
            MESSAGES,
            {"system": "Be brief.", "messages": [user("Hi")], "max_tokens": 5},
            Prompt(b"Be brief.\nHi", messages=2),
            id="messages",
        ),
        pytest.param(
            MESSAGES,
            {
                "system": [{"type": "text", "text": "S"}],
                "messages": [
                    user([{"type": "text", "text": "Hi"}]),
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hmm"},
                            {"type": "tool_use", "name": "f", "input": {"x": 1}},
                        ],
                    },
                    user([{"type": "tool_result", "content": "42"}]),
                    user(
                        [
                            {
                                "type": "tool_result",
                                "content": [{"type": "text", "text": "43"}],
                            }
                        ]
                    ),
                ],
            },
            Prompt(
                b'S\nHi\nf\n{"x":1}\n42\n43',
                messages=5,
                optional=(OptionalText(OptionalKind.CURRENT_REASONING, b"hmm"),),
            ),
            id="messages-blocks",
        ),
        pytest.param(EMBEDDINGS, {"input": "Once"}, Prompt(b"Once"), id="embedding"),
        pytest.param(
            EMBEDDINGS, {"input": ["a", "longest"]}, Prompt(b"longest"), id="embeddings"
        ),
        pytest.param(
            EMBEDDINGS, {"input": [1, 2]}, Prompt(b"", token_ids=2), id="embedding-ids"
        ),
        pytest.param(
            EMBEDDINGS, {"messages": [user("Hi")]}, Prompt(b"Hi"), id="embedding-chat"
        ),
    ],
)
def test_every_format_gives_its_prompt(
    path: str, body: dict[str, Any], prompt: Prompt
) -> None:
    read = parse(path, **body).prompt
    assert replace(read, message_ends=()) == prompt


CONTENTS = st.one_of(
    st.sampled_from(["", "a", "é", "two words", "漢字\n"]),
    st.lists(st.sampled_from(["x", "ü"]).map(lambda t: {"type": "text", "text": t})),
    st.none(),
)


@given(st.lists(CONTENTS, min_size=1, max_size=6), st.sampled_from(["", "ß", None]))
def test_messages_end_where_the_text_of_the_first_ones_does(
    contents: list[Any], system: str | None
) -> None:
    messages = [{"role": "user", "content": each} for each in contents]
    first = {} if system is None else {"system": system}
    ends = parse(CHAT, messages=messages, **first).prompt.message_ends
    texts = [
        parse(CHAT, messages=messages[: n + 1], **first).prompt.text
        for n in range(len(messages))
    ]
    assert ends == tuple(map(len, texts))


def test_tool_calls_and_their_results_are_text() -> None:
    call = {"id": "1", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    messages = [
        user("What colour?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "blue"},
    ]

    assert text_of(CHAT, messages=messages) == (
        'What colour?\nlook\n{"at": "sky"}\nblue'
    )


def test_reasoning_refusals_and_names_are_text() -> None:
    message = {
        "content": "c",
        "reasoning_content": "why",
        "refusal": "no",
        "name": "ann",
    }

    prompt = parse(CHAT, messages=[message]).prompt
    assert prompt.text == b"c\nno\nann"
    assert prompt.optional == (OptionalText(OptionalKind.CURRENT_REASONING, b"why"),)


def test_tool_definitions_are_apart_from_the_text() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"é": [1, 2.5]}}}
    ]

    prompt = parse(CHAT, messages=[user("Hi")], tools=tools).prompt

    assert prompt.text == b"Hi"
    assert prompt.tools == 1
    assert (
        prompt.tools_text
        == json.dumps(tools, ensure_ascii=False, separators=(",", ":")).encode()
    )


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": JPEG}}, "images"),
        ({"type": "input_image", "image_url": JPEG}, "images"),
        ({"type": "image", "source": {"type": "base64", "data": JPEG}}, "images"),
        ({"type": "input_audio", "input_audio": {"data": JPEG}}, "audios"),
        ({"type": "video_url", "video_url": {"url": JPEG}}, "audios"),
        ({"type": "file", "file": {"file_data": JPEG}}, "files"),
        ({"type": "input_file", "file_data": JPEG}, "files"),
        ({"type": "document", "source": {"type": "base64", "data": JPEG}}, "files"),
        ({"type": "tool_result", "content": [{"type": "image", "x": JPEG}]}, "images"),
    ],
)
def test_a_media_part_is_counted_and_its_base64_is_not_text(
    part: dict[str, Any], kind: str
) -> None:
    content = [{"type": "text", "text": "What is it?"}, part, part]

    prompt = parse(CHAT, messages=[user(content)]).prompt

    assert prompt.text == b"What is it?"
    assert {k: getattr(prompt, k) for k in ("images", "audios", "files")} == (
        {"images": 0, "audios": 0, "files": 0} | {kind: 2}
    )
    assert prompt.has_media


def test_a_document_of_text_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "A page."}

    prompt = parse(
        MESSAGES, messages=[user([{"type": "document", "source": source}])]
    ).prompt

    assert prompt.text == b"A page."
    assert not prompt.has_media


def encodings(body: Any) -> list[bytes]:
    compact = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    go = compact.replace("<", "\\u003c").replace(">", "\\u003e")
    return [
        compact.encode(),
        json.dumps(body).encode(),
        go.encode(),
        json.dumps(body, ensure_ascii=False, indent=3).encode(),
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=60)
@given(content=TEXT, tool=TEXT, arguments=TEXT)
def test_one_request_in_four_encodings_is_one_prompt(
    content: str, tool: str, arguments: str
) -> None:
    body = {
        "model": "m",
        "messages": [
            user([{"type": "text", "text": content}]),
            {"tool_calls": [{"function": {"name": tool, "arguments": arguments}}]},
            {"content": [{"type": "tool_use", "name": "f", "input": {tool: content}}]},
        ],
        "tools": [{"function": {"name": tool, "description": content}}],
    }

    prompts = {read(CHAT, encoded).prompt for encoded in encodings(body)}

    assert len(prompts) == 1


@pytest.mark.parametrize("kind", [None, 5, [], ["image"], {}, True])
def test_a_part_of_no_known_type_is_read_for_its_text(kind: Any) -> None:
    assert text_of(CHAT, messages=[user([{"type": kind, "text": "a"}])]) == "a"
