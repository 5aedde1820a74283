"""Requests whose bodies are large, compressed, broken, chunked or have trailers."""

import gzip
import json
import zlib
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

LONG_TEXT = "all the words of a long story " * 3000
PATH = "/v1/chat/completions"


def chat_body(content: Any, **fields: Any) -> bytes:
    body = {
        "model": "m",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": content}],
    }
    return json.dumps(body | fields).encode()


def picture(size_bytes: int) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + "A" * size_bytes
    return [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


@pytest.mark.parametrize(
    "raw", [b"not JSON", b'{"messages": [', b"[]", b"\xff\xfe\x00", b"null"]
)
def test_an_unreadable_body_goes_to_the_long_pool_once(raw: bytes, client: Any) -> None:
    response = client.post(PATH, raw)
    record = client.record(response)
    assert (response.status, response.served_by, response.attempts) == (
        400,
        "vllm_long",
        1,
    )
    assert (record.pool, record.reason) == ("long", "unparsable")


@pytest.mark.parametrize(
    "compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"]
)
@pytest.mark.parametrize(
    ("content", "pool"),
    [("Hello", "short"), (LONG_TEXT, "long")],
    ids=["short", "long"],
)
def test_a_compressed_body_is_read(
    compress: Any, content: str, pool: str, client: Any
) -> None:
    encoding = "gzip" if compress is gzip.compress else "deflate"
    plain = chat_body(content)
    response = client.post(PATH, compress(plain), {"content-encoding": encoding})
    assert (response.status, response.served_by) == (200, f"vllm_{pool}")
    # The backend decompressed the same body that the client compressed.
    usage = client.post(PATH, plain).json()["usage"]
    assert response.json()["usage"]["prompt_tokens"] == usage["prompt_tokens"]


@pytest.mark.parametrize("encoding", ["gzip", "x-unheard-of"])
def test_a_body_that_is_not_what_it_says_goes_to_the_long_pool(
    encoding: str, client: Any
) -> None:
    response = client.post(PATH, chat_body("Hello"), {"content-encoding": encoding})
    record = client.record(response)
    assert (response.served_by, record.pool, record.reason) == (
        "vllm_long",
        "long",
        "undecodable",
    )


def test_a_chunked_body_with_trailers_is_routed(client: Any) -> None:
    raw = chat_body("Hello")
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\nconnection: close\r\n\r\n"
    answer = client.raw(
        head.encode() + b"%x\r\n%s\r\n0\r\nx-checksum: 1\r\n\r\n" % (len(raw), raw)
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x-llm-served-by: vllm_short" in answer


@pytest.mark.parametrize("megabytes", [2, 12])
def test_a_huge_body_goes_to_the_long_pool_unread(
    megabytes: int, client: Any, admin: Any
) -> None:
    before = admin.metric("extproc_message_seconds_count", phase="request_body")
    response = client.post(PATH, chat_body(picture(megabytes << 20)))
    record = client.record(response)
    assert (response.status, response.served_by) == (200, "vllm_long")
    assert (record.pool, record.reason) == ("long", "too_large")
    assert admin.metric("extproc_message_seconds_count", phase="request_body") == before


@pytest.mark.parametrize("size_bytes", [300_000, 700_000, 1_000_000])
def test_a_picture_below_the_cap_costs_what_a_picture_costs(
    size_bytes: int, client: Any
) -> None:
    """Base64 data does not count as text. Otherwise the picture would not fit the short
    pool.
    """
    response = client.post(PATH, chat_body(picture(size_bytes)))
    assert (response.status, response.served_by) == (200, "vllm_short")
    assert client.record(response).prompt_tokens < 2000


def test_every_size_up_to_the_cap_is_answered(client: Any) -> None:
    """No size may be within the router's limit but above Envoy's buffer limit."""
    cap = 1 << 20
    overhead = len(chat_body(picture(0)))
    for size, reason in (
        (cap - 1, "within_threshold"),
        (cap, "within_threshold"),
        (cap + 1, "too_large"),
    ):
        response = client.post(PATH, chat_body(picture(size - overhead)))
        assert response.status == 200
        assert client.record(response).reason == reason


def test_questions_about_the_server_are_not_asked_about(client: Any) -> None:
    response = client.request("GET", "/v1/models", headers={"x-llm-pool": "short"})
    assert response.json()["data"][0]["max_model_len"] == 65536
    assert response.served_by == "vllm_long"
    assert client.record(response).pool is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_a_request_without_a_body_passes(method: str, client: Any) -> None:
    response = client.request(method, PATH)
    assert (response.status, response.served_by) == (405, "vllm_long")
    assert client.record(response).pool is None


def test_an_empty_post_passes(client: Any) -> None:
    response = client.post(PATH, b"")
    assert (response.status, response.served_by) == (400, "vllm_long")


def test_a_header_block_that_is_not_ours_reaches_the_backend(
    scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(200, b"{}")]
    scripted_client.chat("Hello", {"authorization": "Bearer secret", "x-mine": "1"})
    received = scripted.received[-1]
    assert received.headers["authorization"] == "Bearer secret"
    assert received.headers["x-mine"] == "1"
    assert received.headers["x-llm-pool"] == "short"
    assert int(received.headers["x-llm-budget"]) > 0
    assert int(received.headers["content-length"]) == len(received.body)
