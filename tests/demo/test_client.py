import json
from typing import Any

import pytest

from extproc.demo.client import Reply, read_usage
from extproc.demo.workload import DemoRequest

CHAT = {
    "choices": [{"finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


def events(*documents: Any) -> bytes:
    blocks = [f"data: {json.dumps(document)}\n\n" for document in documents]
    return ("".join(blocks) + "data: [DONE]\n\n").encode()


@pytest.mark.parametrize(
    ("content", "usage", "truncated"),
    [
        (
            json.dumps(CHAT).encode(),
            {"prompt_tokens": 7, "completion_tokens": 3},
            False,
        ),
        (
            json.dumps(CHAT | {"choices": [{"finish_reason": "length"}]}).encode(),
            CHAT["usage"],
            True,
        ),
        (
            json.dumps(
                {"stop_reason": "max_tokens", "usage": {"input_tokens": 7}}
            ).encode(),
            {"input_tokens": 7},
            True,
        ),
        (
            json.dumps({"status": "incomplete", "usage": {"input_tokens": 7}}).encode(),
            {"input_tokens": 7},
            True,
        ),
        (
            events(
                {"choices": [], "usage": None},
                {"choices": [], "usage": {"prompt_tokens": 7}},
            ),
            {"prompt_tokens": 7},
            False,
        ),
        (events({"choices": [{"finish_reason": "length"}]}), {}, True),
        (
            events(
                {
                    "type": "message_start",
                    "message": {"usage": {"input_tokens": 7, "output_tokens": 0}},
                },
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn"},
                    "usage": {"output_tokens": 3},
                },
            ),
            {"input_tokens": 7, "output_tokens": 3},
            False,
        ),
        (
            events({"response": {"status": "completed", "usage": {"input_tokens": 7}}}),
            {"input_tokens": 7},
            False,
        ),
        (b"", {}, False),
    ],
    ids=[
        "chat",
        "cut",
        "anthropic",
        "responses",
        "stream",
        "no usage",
        "anthropic stream",
        "responses stream",
        "empty",
    ],
)
def test_usage_is_found(content: bytes, usage: dict[str, int], truncated: bool) -> None:
    assert read_usage(content) == (usage, truncated)


@pytest.mark.parametrize(
    ("status", "detail", "failed"),
    [(200, "", False), (200, "cut off", True), (400, "", True), (0, "x", True)],
)
def test_what_counts_as_failed(status: int, detail: str, failed: bool) -> None:
    reply = Reply(
        "id", DemoRequest("/", b"", "prose"), status, None, None, False, 0.0, detail
    )
    assert reply.failed is failed
