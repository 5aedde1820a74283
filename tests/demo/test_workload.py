import json
from collections import Counter

import pytest

from extproc.demo.stack.vllm_backend import LONG_WINDOW, SHORT_WINDOW
from extproc.demo.standin.request import ServedApi, read_job
from extproc.demo.standin.tokenizer import Tokenizer
from extproc.demo.texts import Kind
from extproc.demo.workload import (
    DemoRequest,
    RequestFileError,
    Target,
    make_requests,
    read_requests,
)


@pytest.fixture(scope="module")
def requests() -> list[DemoRequest]:
    return list(make_requests(210, seed=7))


def test_equal_seeds_give_equal_requests(requests: list[DemoRequest]) -> None:
    assert list(make_requests(210, seed=7)) == requests
    assert list(make_requests(210, seed=8)) != requests


def test_every_kind_and_api_is_there(requests: list[DemoRequest]) -> None:
    assert Counter(request.kind for request in requests) == dict.fromkeys(Kind, 30)
    paths = {request.path for request in requests}
    assert paths == {
        ServedApi.CHAT,
        ServedApi.COMPLETIONS,
        ServedApi.MESSAGES,
        ServedApi.RESPONSES,
    }
    assert {request.stream for request in requests} == {True, False}
    assert any(b'"tools"' in request.body for request in requests)
    assert any(b'"max_tokens"' not in request.body for request in requests)


def test_every_request_fits_the_long_pool_and_not_all_the_short_one(
    requests: list[DemoRequest], tokenizer: Tokenizer
) -> None:
    longest = [
        max(
            read_job(
                ServedApi(request.path), request.body, tokenizer, 65_536
            ).prompt_tokens
        )
        for request in requests
    ]
    share = sum(tokens > 8192 for tokens in longest) / len(longest)
    assert 0.05 < share < 0.4


def test_sizes_follow_the_short_pool() -> None:
    whole, quarter = (
        sum(
            len(request.body)
            for request in make_requests(70, 1, Target(short_window=window))
            if b"image_url" not in request.body
        )
        for window in (8192, 2048)
    )
    assert 0.15 < quarter / whole < 0.4


def test_every_request_fits_a_real_vllm_s_long_window_byte_by_byte() -> None:
    """A request fits with any tokenizer, because no tokenizer yields more tokens than
    bytes.
    """
    target = Target(short_window=SHORT_WINDOW, longest_answer=16, images=False)
    for request in make_requests(210, 1, target):
        text = json.dumps(json.loads(request.body), ensure_ascii=False)
        assert len(text.encode()) + 16 < LONG_WINDOW


def test_answers_can_be_limited() -> None:
    for request in make_requests(70, 1, Target(longest_answer=9, images=False)):
        body = json.loads(request.body)
        assert b"image_url" not in request.body
        limits = {
            body.get(name)
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
        }
        assert limits == {None, 9}


CHAT = {"model": "m", "messages": [{"role": "user", "content": "é"}], "stream": True}


@pytest.mark.parametrize(
    ("line", "path", "stream"),
    [
        (CHAT, "/v1/chat/completions", True),
        ({"prompt": "a"}, "/v1/completions", False),
        ({"input": "a"}, "/v1/responses", False),
        ({"body": CHAT}, "/v1/chat/completions", True),
        ({"path": "/v1/messages", "body": CHAT}, "/v1/messages", True),
        (
            {"path": "/v1/completions", "body": json.dumps({"prompt": "a"})},
            "/v1/completions",
            False,
        ),
        ({"path": "/v1/completions", "body": "not JSON"}, "/v1/completions", False),
    ],
)
def test_the_user_s_own(line: dict[str, object], path: str, stream: bool) -> None:
    (request,) = read_requests(["\n", json.dumps(line), "  "])
    assert (request.path, request.stream) == (path, stream)
    body = line.get("body", line)
    assert (
        request.body.decode() == body
        if isinstance(body, str)
        else json.loads(request.body) == body
    )


def test_the_user_s_own_headers() -> None:
    (request,) = read_requests(
        [json.dumps({"body": {}, "headers": {"x-llm-category": "code"}})]
    )
    assert request.headers == {"x-llm-category": "code"}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"a": 1}', '{"path": "x", "body": {}}', '{"body": {}, "headers": []}'],
)
def test_what_is_no_request_is_named_by_its_line(line: str) -> None:
    with pytest.raises(RequestFileError, match="line 2: "):
        list(read_requests(["{}".replace("{}", json.dumps(CHAT)), line]))
