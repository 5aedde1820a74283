"""Bodies without a content-length, in every body mode of the filter."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from .body_modes import ROUTING, configured
from .outside import Admin, Client, Response
from .unsized import send_chunked, send_http2

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

Send = Callable[..., Response]
SENDERS = [
    pytest.param(send_chunked, id="chunked"),
    pytest.param(send_http2, id="http2"),
]
MIB = 1 << 20


def chat(words: int = 1, padding_bytes: int = 0) -> bytes:
    """Return a chat of this many words, padded with insignificant whitespace."""
    message = {"role": "user", "content": "word " * words}
    body = json.dumps({"model": "m", "max_tokens": 4, "messages": [message]})
    return body.encode() + b" " * padding_bytes


def split(body: bytes, pieces: int) -> list[bytes]:
    size = len(body) // pieces + 1
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.fixture(scope="module", params=ROUTING.values(), ids=list(ROUTING))
def variant(request: pytest.FixtureRequest, start_session_envoy: Any) -> Client:
    mode, override = request.param
    client: Client = start_session_envoy(configured(mode, override=override))
    return client


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize(("words", "pool"), [(1, "short"), (20_000, "long")])
def test_the_right_pool_answers(
    send: Send, pieces: int, words: int, pool: str, variant: Client
) -> None:
    response = send(variant, split(chat(words), pieces))

    assert (response.status, response.served_by) == (200, f"vllm_{pool}")
    assert response.json()["usage"]["prompt_tokens"] >= words


@pytest.mark.parametrize("send", SENDERS)
def test_a_body_that_comes_after_the_headers_answer_is_routed(
    send: Send, variant: Client, admin: Admin, eventually: Any
) -> None:
    """The router receives the headers before the first piece of the body."""

    def seen() -> float:
        return admin.metric("extproc_streams_inflight")

    before = seen()

    def headers_seen() -> None:
        eventually(lambda: seen() > before)

    response = send(variant, split(chat(), 2), headers_seen)

    assert (response.status, response.served_by) == (200, "vllm_short")


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("mib", [2, 20])
def test_a_body_above_the_cap_goes_to_the_long_pool(
    send: Send, mib: int, variant: Client, admin: Admin
) -> None:
    response = send(variant, split(chat(padding_bytes=mib * MIB), 10))
    record = variant.record(response)

    assert (response.status, response.served_by) == (200, "vllm_long")
    assert (record.pool, record.reason) == ("long", "too_large")


def test_above_the_limit_of_envoy_it_is_refused_and_nothing_hangs(
    client: Client,
) -> None:
    response = send_chunked(client, split(chat(padding_bytes=40 * MIB), 40))

    assert response.status == 413
    assert client.chat("Hello").served_by == "vllm_short"


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("mode", ["BUFFERED_PARTIAL", "STREAMED"])
def test_modes_that_cannot_route_by_a_body_lose_none(
    mode: str, send: Send, start_session_envoy: Any
) -> None:
    client = start_session_envoy(configured(mode, override=False))

    response = send(client, split(chat(3), 3))

    assert response.status == 200
    assert response.json()["usage"]["prompt_tokens"] >= 3


class TestUnread:
    """With a small buffer limit in Envoy, the router passes such requests unread."""

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, stack: Any, start_session: Any) -> Client:
        config = {"requests": {"unknown_length": "default_pool"}}
        client, _ = start_session(config, stack.backends)
        return client

    @pytest.mark.parametrize("send", SENDERS)
    @pytest.mark.parametrize("padding_bytes", [0, 40 * MIB])
    def test_it_goes_to_the_long_pool_at_any_length(
        self, send: Send, padding_bytes: int, client: Client
    ) -> None:
        response = send(client, split(chat(padding_bytes=padding_bytes), 40))
        record = client.record(response)

        assert (response.status, response.served_by) == (200, "vllm_long")
        assert (record.pool, record.reason) == ("long", "length_unknown")


def test_the_server_saw_no_fault(admin: Admin) -> None:
    assert admin.metric("extproc_protocol_errors_total") == 0
    assert admin.metric("extproc_faults_total") == 0
