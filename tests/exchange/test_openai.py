import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.exchange.body_parser import parse_request
from extproc.exchange.limits import MAX_OUTPUT_TOKENS
from extproc.exchange.openai import (
    ENDPOINTS,
)
from extproc.routing.policy import Reason
from extproc.routing.request import (
    MAX_MODEL_CHARS,
    OptionalKind,
    OptionalText,
    Prompt,
    Request,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"

JPEG = "data:image/jpeg;base64," + "/9j/4AAQ" * 5000


def read(path: str, body: bytes) -> Request:
    request = parse_request(path, body)
    assert isinstance(request, Request)
    return request


def parse(path: str, **body: Any) -> Request:
    return read(path, json.dumps(body).encode())


def text_of(path: str, **body: Any) -> str:
    return parse(path, **body).prompt.text.decode()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


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


def test_a_list_of_prompts_says_how_many() -> None:
    assert parse(COMPLETIONS, prompt=["a", "b", "c"]).prompts == 3
    assert parse(COMPLETIONS, prompt=[1, 2, 3]).prompts == 1


def test_embeddings_generate_nothing() -> None:
    assert not parse(EMBEDDINGS, input="a").generates
    assert not parse(EMBEDDINGS, messages=[user("a")]).generates
    assert parse(COMPLETIONS, prompt="a").generates


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
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=10,
)


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


@pytest.mark.parametrize(
    ("path", "declared", "limit"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": None}, 7),
        (COMPLETIONS, {"max_tokens": 7}, 7),
        (RESPONSES, {"max_output_tokens": 9}, 9),
        (RESPONSES, {"max_tokens": 7}, None),
        (MESSAGES, {"max_tokens": 7}, 7),
        (EMBEDDINGS, {"max_tokens": 7}, None),
        (CHAT, {"max_tokens": 8.0}, 8),
        (CHAT, {"max_tokens": "8"}, 8),
        (CHAT, {"max_tokens": 8.5}, None),
        (CHAT, {"max_tokens": "8x"}, None),
        (CHAT, {"max_tokens": "٨"}, None),
        (CHAT, {"max_tokens": 0}, None),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": True}, 1),
        (CHAT, {"max_tokens": [8]}, None),
        (CHAT, {"max_tokens": {"a": 1}}, None),
        (CHAT, {"max_tokens": 1e300}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": 1 << 40}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": 10**30}, MAX_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": "9" * 400}, MAX_OUTPUT_TOKENS),
    ],
)
def test_the_declared_output_limit(
    path: str, declared: dict[str, Any], limit: int | None
) -> None:
    body = {"messages": [user("Hi")], "prompt": "Hi", "input": "Hi"}

    assert parse(path, **body, **declared).max_tokens == limit


@pytest.mark.parametrize(
    ("declared", "sequences"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": -3}, 1),
        ({"n": []}, 1),
    ],
)
def test_sequences_side_by_side(declared: dict[str, Any], sequences: int) -> None:
    assert parse(COMPLETIONS, prompt="Hi", **declared).sequences == sequences


def test_streaming_and_its_options() -> None:
    options = {"include_usage": True}

    assert not parse(COMPLETIONS, prompt="Hi").stream
    assert parse(COMPLETIONS, prompt="Hi", stream=True).stream
    assert parse(COMPLETIONS, prompt="Hi", stream_options=options).asks_usage
    for other in (None, [], {}, {"include_usage": False}, {"include_usage": "yes"}):
        assert not parse(COMPLETIONS, prompt="Hi", stream_options=other).asks_usage


def test_model_is_text_or_nothing() -> None:
    assert parse(COMPLETIONS, prompt="Hi", model="llama").model == "llama"
    assert parse(COMPLETIONS, prompt="Hi", model=["llama"]).model == ""


def test_a_model_s_name_is_kept_up_to_its_limit() -> None:
    for sent in (MAX_MODEL_CHARS, MAX_MODEL_CHARS + 1, 70_000):
        request = parse(CHAT, model="m" * sent, messages=[user("Hi")])
        assert request.model == "m" * MAX_MODEL_CHARS


def test_body_bytes_are_those_of_the_body() -> None:
    body = b'{"prompt" :  "Hi"}'

    request = read(COMPLETIONS, body)

    assert request.body_bytes == len(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"messages": []}',
        b'{"messages": null}',
        b'{"messages": "Hi"}',
        b'{"messages": ["Hi"]}',
        b'{"messages": [{"content": "\\ud800"}]}',
        b'{"messages": [{"content": "\xff"}]}',
        b'{"messages": [{"content": "Hi"}]} trailing',
        b'{"messages": [{"content": ' + b"[" * 100_000,
        b'{"messages": [{"content": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
    ],
)
def test_no_request_is_unparsable(body: bytes) -> None:
    assert parse_request(CHAT, body) is Reason.UNPARSABLE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path in (COMPLETIONS, RESPONSES, EMBEDDINGS)
        for value in (None, 5, {}, [], True)
        if (path, value) != (RESPONSES, [])  # no items: left to the backend
    ],
)
def test_a_prompt_of_no_known_type_is_unparsable(path: str, value: Any) -> None:
    body = json.dumps({"prompt": value, "input": value}).encode()

    assert parse_request(path, body) is Reason.UNPARSABLE


@pytest.mark.parametrize("depth", [10, 100, 300, 900])
def test_deeply_nested_parts_do_not_raise(depth: int) -> None:
    parts = b'[{"content":' * depth + b'"x"' + b"}]" * depth

    parse_request(CHAT, b'{"messages":[{"content":' + parts + b"}]}")


@pytest.mark.parametrize("kind", [None, 5, [], ["image"], {}, True])
def test_a_part_of_no_known_type_is_read_for_its_text(kind: Any) -> None:
    assert text_of(CHAT, messages=[user([{"type": kind, "text": "a"}])]) == "a"


@settings(max_examples=50)
@given(path=st.sampled_from(list(ENDPOINTS)), body=st.binary(max_size=100))
def test_no_bytes_raise(path: str, body: bytes) -> None:
    parse_request(path, body)


KEYS = [
    "messages",
    "system",
    "prompt",
    "input",
    "tools",
    "stream_options",
    "n",
    "model",
]
PART_KEYS = [
    "type",
    "text",
    "content",
    "source",
    "function",
    "arguments",
    "input",
    "name",
]
PARTS = st.recursive(
    JSON,
    lambda inner: st.lists(
        st.dictionaries(st.sampled_from(PART_KEYS), inner, max_size=4), max_size=3
    ),
    max_leaves=8,
)
MESSAGE = st.dictionaries(
    st.sampled_from(["content", "tool_calls", "reasoning", "refusal", "name"]),
    PARTS,
    max_size=4,
)


@settings(max_examples=40)
@given(
    path=st.sampled_from(list(ENDPOINTS)),
    body=st.dictionaries(st.sampled_from(KEYS), PARTS, max_size=5),
    messages=st.lists(MESSAGE, max_size=3),
)
def test_no_json_raises(
    path: str, body: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    request = parse_request(path, json.dumps({"messages": messages, **body}).encode())

    if isinstance(request, Request):
        assert request.sequences >= 1
        assert request.prompts >= 1
        assert request.max_tokens is None or request.max_tokens > 0


@pytest.mark.parametrize("path", ["/v1/models", "", "/v1/chat/completions/x"])
def test_a_body_for_a_path_of_no_api_is_not_parsed(path: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "Hi"}]}'

    assert isinstance(parse_request(CHAT, body), Request)
    assert parse_request(path, body) is Reason.UNPARSABLE


def test_only_openai_streams_know_stream_options() -> None:
    asked = {path for path, each in ENDPOINTS.items() if each.stream_options}
    assert asked == {CHAT, COMPLETIONS}
