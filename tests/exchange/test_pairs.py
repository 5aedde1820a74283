"""For rerankers each pair of texts is a prompt, and the longest prompt decides."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.body_parser import parse_request
from extproc.routing.policy import Reason
from extproc.routing.request import Request

RERANK, SCORE = "/v1/rerank", "/v1/score"
QUESTION = "what is it?"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def read(path: str, **fields: Any) -> Request | Reason:
    return parse_request(path, json.dumps({"model": "m"} | fields).encode())


@pytest.mark.parametrize("path", [RERANK, "/rerank", "/v2/rerank", "/team/v1/rerank"])
def test_a_rerank_is_its_query_with_its_longest_document(path: str) -> None:
    documents = ["short", "by far the longest of them", "é" * 10]
    request = read(path, query=QUESTION, documents=documents, top_n=2)

    assert isinstance(request, Request)
    assert request.prompt.text.decode() == f"{QUESTION}\n{documents[1]}"
    assert (request.prompts, request.model) == (3, "m")
    assert not request.generates
    assert request.max_tokens is None
    assert request.operation == "rerank"


@pytest.mark.parametrize(
    ("fields", "text", "pairs"),
    [
        ({"text_1": "a", "text_2": "bc"}, "a\nbc", 1),
        ({"text_1": "a", "text_2": ["b", "cd"]}, "a\ncd", 2),
        ({"text_1": ["aaaa", "b"], "text_2": ["c", "dd"]}, "aaaa\nc", 2),
        ({"data_1": ["a"], "data_2": ["b", "c", "de"]}, "a\nde", 3),
        ({"queries": "a", "documents": ["b"]}, "a\nb", 1),
        ({"queries": "a", "items": ["b", "ccc"]}, "a\nccc", 2),
    ],
)
def test_a_score_is_its_longest_pair(
    fields: dict[str, Any], text: str, pairs: int
) -> None:
    request = read(SCORE, **fields)

    assert isinstance(request, Request)
    assert (request.prompt.text.decode(), request.prompts) == (text, pairs)


def test_documents_may_be_parts_and_pictures() -> None:
    documents = [
        {"text": "one"},
        {"content": [PICTURE, {"type": "text", "text": "two!"}]},
    ]
    for given_documents in (documents, {"content": [PICTURE]}):
        request = read(RERANK, query=QUESTION, documents=given_documents)
        assert isinstance(request, Request)
        assert request.prompt.images == 1
        assert QUESTION in request.prompt.text.decode()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"query": QUESTION},
        {"documents": ["a"]},
        {"query": QUESTION, "documents": []},
        {"query": QUESTION, "documents": [1, 2]},
        {"query": 1, "documents": ["a"]},
        {"query": QUESTION, "documents": None},
    ],
)
@pytest.mark.parametrize("path", [RERANK, SCORE])
def test_without_two_sides_there_is_no_request(
    path: str, fields: dict[str, Any]
) -> None:
    assert read(path, **fields) is Reason.UNPARSABLE


def test_a_large_document_counts_whole() -> None:
    """Only a sample of a large body's text is read, but the text's size is exact."""
    text = "many words in it, " * 40_000
    request = read(RERANK, query=QUESTION, documents=["a", text])

    assert isinstance(request, Request)
    prompt = request.prompt
    size = len(prompt.text) + prompt.missing_bytes
    assert abs(size - len(text) - len(QUESTION) - 1) < 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "content", "type"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(JSON, JSON, st.sampled_from([RERANK, SCORE]))
def test_nothing_raises(first: Any, second: Any, path: str) -> None:
    read(path, query=first, documents=second)
    read(path, text_1=first, text_2=second)
