"""The formats of common logs, and the errors for each field of a line."""

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.commands.request_log import Entry, LogError, read_lines, read_log

MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"model": "m", "messages": MESSAGES, "max_tokens": 9}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3}
CHAT = "/v1/chat/completions"


def read(record: Any, *, bom: bool = False) -> Entry:
    line = json.dumps(record).encode()
    (entry,) = read_lines([b"\xef\xbb\xbf" + line if bom else line], "x-llm-category")
    return entry


FORMS: dict[str, dict[str, Any]] = {
    "text": {"path": CHAT, "body": json.dumps(BODY), "usage": USAGE},
    "object": {"path": CHAT, "body": BODY, "usage": USAGE},
    "bare": {**BODY, "usage": USAGE},
    "OpenAI batch, in and out": {
        "custom_id": "1",
        "method": "POST",
        "url": CHAT,
        "body": BODY,
        "response": {"status_code": 200, "body": {"usage": USAGE}},
    },
    "a response's body as text": {
        "path": CHAT,
        "body": BODY,
        "response": {"status": 200, "body": json.dumps({"usage": USAGE})},
    },
    "a whole address": {"url": f"https://api.example{CHAT}", "body": BODY, **USAGE},
    "LiteLLM, standard payload": {
        "call_type": "acompletion",
        "model": "m",
        "messages": MESSAGES,
        "model_parameters": {"max_tokens": 9},
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "response": {"choices": []},
    },
    "LiteLLM, spend log": {
        "call_type": "acompletion",
        "proxy_server_request": json.dumps(
            {"url": f"http://proxy{CHAT}", "body": BODY}
        ),
        "prompt_tokens": 12,
        "completion_tokens": 3,
    },
    "LiteLLM, body alone": {
        "proxy_server_request": json.dumps(BODY),
        "messages": "{}",
        "prompt_tokens": 12,
        "completion_tokens": 3,
    },
    "Langfuse, messages": {
        "type": "GENERATION",
        "model": "m",
        "input": MESSAGES,
        "modelParameters": {"max_tokens": 9},
        "usageDetails": {"input": 12, "output": 3, "total": 15},
    },
    "Langfuse, object and text": {
        "traceId": "t",
        "model": "m",
        "input": json.dumps({"messages": MESSAGES}),
        "modelParameters": json.dumps({"max_tokens": 9}),
        "usage": {"input": 12, "output": 3, "unit": "TOKENS"},
    },
    "Langfuse, older": {
        "type": "GENERATION",
        "model": "m",
        "input": {"messages": MESSAGES},
        "modelParameters": {"max_tokens": 9},
        "promptTokens": 12,
        "completionTokens": 3,
    },
}


@pytest.mark.parametrize("bom", [False, True], ids=["", "bom"])
@pytest.mark.parametrize("record", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_request_and_its_counts(
    record: dict[str, Any], bom: bool
) -> None:
    entry = read(record, bom=bom)

    assert entry.path == CHAT
    assert json.loads(entry.body) == BODY
    assert (entry.prompt_tokens, entry.completion_tokens) == (12, 3)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("by_stdin", [False, True], ids=["file", "standard input"])
def test_a_file_may_be_gzipped(
    pack: Callable[[bytes], bytes],
    by_stdin: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = json.dumps({"path": CHAT, "body": BODY, "usage": USAGE}).encode()
    file = tmp_path / "log"
    file.write_bytes(pack(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n"))
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        entries = list(read_log("-" if by_stdin else str(file), "x-llm-category"))

    assert [entry.prompt_tokens for entry in entries] == [12, 12]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:12]])
def test_damaged_gzip_is_an_error(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "log.gz"
    file.write_bytes(damage(gzip.compress(b"\n" * 100_000)))
    with pytest.raises(LogError, match=r"^damaged gzip; expected a whole file$"):
        list(read_log(str(file), "x-llm-category"))


def test_a_generation_of_one_text_is_a_chat() -> None:
    entry = read({"traceId": "t", "input": "Hello", "usage": USAGE})

    assert json.loads(entry.body)["messages"] == MESSAGES


@pytest.mark.parametrize(
    ("record", "path"),
    [
        ({"prompt": "Once"}, "/v1/completions"),
        ({"input": "Hi"}, "/v1/responses"),
        ({"call_type": "aembedding", "input": ["Hi"]}, "/v1/embeddings"),
        ({"call_type": "responses", "input": "Hi"}, "/v1/responses"),
        (
            {"path": "/team/v1/completions?x=1", "body": "{}"},
            "/team/v1/completions?x=1",
        ),
        ({"request": {"url": "/v1/messages", "body": BODY}}, "/v1/messages"),
    ],
)
def test_the_path_is_named_or_follows_from_the_fields(
    record: dict[str, Any], path: str
) -> None:
    assert read({**record, "usage": USAGE}).path == path


def test_bytes_on_the_wire_have_an_encoding() -> None:
    wire = gzip.compress(json.dumps(BODY).encode())
    entry = read(
        {
            "body_base64": base64.b64encode(wire).decode(),
            "headers": {"Content-Encoding": "gzip", "X-LLM-Category": "code"},
            "usage": USAGE,
        }
    )

    assert (entry.body, entry.encoding, entry.hint) == (wire, "gzip", "code")


def test_anthropic_cached_tokens_are_of_the_prompt() -> None:
    usage = {"input_tokens": 2, "cache_read_input_tokens": 10, "output_tokens": 3}

    assert read({"body": BODY, "usage": usage}).prompt_tokens == 12


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "a list; expected one object a line"),
        ({"usage": USAGE}, "body: missing; expected a request's JSON"),
        ({"body": 5, "usage": USAGE}, "body: a number; expected"),
        ({"body": {}, "usage": USAGE}, "body: an object; expected"),
        ({"body": "{}"}, "usage.prompt_tokens: missing; expected a number of tokens"),
        (
            {"body": "{}", "usage": {"prompt_tokens": "x"}},
            "usage.prompt_tokens: a text",
        ),
        ({"body": "{}", "path": 5, "usage": USAGE}, "path: a number; expected a text"),
        ({"body": "{}", "headers": 5, "usage": USAGE}, "headers: a number; expected"),
        ({"body_base64": "?", "usage": USAGE}, "body_base64: not base64"),
    ],
)
def test_errors_name_the_field_and_no_class(record: Any, message: str) -> None:
    with pytest.raises(LogError, match=r"^line 1: ") as error:
        read(record)

    assert message in str(error.value)
    assert "Error" not in str(error.value)
