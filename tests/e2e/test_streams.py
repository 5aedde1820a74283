"""A response reaches the client as the backend wrote it, whether observed or not."""

import contextlib
import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"


def event(payload: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + end


def delta(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}}],
    } | fields


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
STREAMS = {
    "LF": [
        event(delta("a")),
        event(delta("b")),
        event(delta("", choices=[], usage=USAGE)),
        b"data: [DONE]\n\n",
    ],
    "CRLF": [
        event(delta("a"), b"\r\n\r\n"),
        event(delta("", choices=[], usage=USAGE), b"\r\n\r\n"),
        b"data: [DONE]\r\n\r\n",
    ],
    "usage rides on a choice": [
        event(delta("a", usage=None)),
        event(delta("b", usage=USAGE)),
        b"data: [DONE]\n\n",
    ],
    "cut anywhere": [
        bytes([byte])
        for byte in event(delta("é漢😀")) + event(delta("", choices=[], usage=USAGE))
    ],
    "comments and other fields": [
        b": ping\n\n",
        b"event: x\nid: 3\nretry: 5\n",
        event(delta("a")),
        b"data:[DONE]\n\n",
    ],
    "no end": [event(delta("a")), b'data: {"choices": [{"del'],
    "not events at all": [b"plain text\n", b"\x00\xff\xfe", b"\n\n\n"],
    "nothing": [],
    "one large event": [event(delta("x" * 300_000)), b"data: [DONE]\n\n"],
}


@pytest.mark.parametrize("pieces", STREAMS.values(), ids=STREAMS.keys())
def test_a_stream_arrives_byte_for_byte(
    pieces: list[bytes], scripted: Any, scripted_client: Any
) -> None:
    scripted.reply = [HEAD, *pieces]
    response = scripted_client.chat(
        "Hello", stream=True, stream_options={"include_usage": True}
    )
    assert (response.status, response.served_by) == (200, "vllm_short")
    assert response.body == b"".join(pieces)


DOCUMENTS = {
    "usage": (
        b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}',
        "application/json",
    ),
    "spaces": (b' {\n"usage" : null } ', "application/json; charset=utf-8"),
    "broken": (b'{"usage":{"prompt_tokens":7', "application/json"),
    "not UTF-8": (b"\xff\xfe{}", "application/json"),
    "empty": (b"", "application/json"),
    "not JSON": (b"<html></html>", "text/html"),
    "large": (
        b'{"a":"' + b"x" * 3_000_000 + b'","usage":{"prompt_tokens":7}}',
        "application/json",
    ),
}


@pytest.mark.parametrize(
    ("content", "content_type"), DOCUMENTS.values(), ids=DOCUMENTS.keys()
)
def test_a_document_arrives_byte_for_byte(
    content: bytes, content_type: str, scripted: Any, scripted_client: Any, respond: Any
) -> None:
    scripted.reply = [respond(200, content, content_type)]
    response = scripted_client.chat("Hello")
    assert response.status == 200
    assert response.body == content
    assert response.headers["content-type"] == content_type
    assert int(response.headers["content-length"]) == len(content)


def test_trailers_of_a_response_do_not_disturb(
    scripted: Any, scripted_client: Any
) -> None:
    head = HEAD.replace(
        b"connection: close",
        b"transfer-encoding: chunked\r\ntrailer: x-checksum\r\nconnection: close",
    )
    content = event(delta("a"))
    scripted.reply = [
        head,
        b"%x\r\n%s\r\n0\r\nx-checksum: 1\r\n\r\n" % (len(content), content),
    ]
    response = scripted_client.chat("Hello", stream=True)
    assert (response.status, response.body) == (200, content)


@contextlib.contextmanager
def streamed(client: Any, **fields: Any) -> Iterator[http.client.HTTPResponse]:
    """Yield the response to a streaming request, for a test to read piece by piece."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]} | fields
    connection = http.client.HTTPConnection("127.0.0.1", client.envoy.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body | {"stream": True}),
            {"content-type": "application/json"},
        )
        with connection.getresponse() as response:
            yield response


def read_one_by_one(client: Any, scripted: Any, count: int) -> None:
    """Read a stream; the backend sends each event after the client has the previous
    one.
    """
    events = [event(delta(f"{n}")) for n in range(count)]
    had = [threading.Event() for _ in events]
    scripted.reply = [HEAD]
    for piece, gate in zip(events, had, strict=True):
        scripted.reply += [piece, gate]
    scripted.reply.append(b"data: [DONE]\n\n")
    try:
        with streamed(client) as response:
            for piece, gate in zip(events, had, strict=True):
                assert response.read(len(piece)) == piece
                gate.set()
            assert response.read() == b"data: [DONE]\n\n"
    finally:
        for gate in had:
            gate.set()


def test_the_first_tokens_arrive_before_the_last_are_made(
    scripted: Any, scripted_client: Any
) -> None:
    """Observation does not delay a stream."""
    read_one_by_one(scripted_client, scripted, 3)


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_streamed_token_costs_no_message(
    transport: str, start_session: Any, stack: Any, scripted: Any
) -> None:
    """Unless an exchange is sampled, Envoy sends only the request's headers and body."""
    messages = "http.llm.ext_proc.stream_msgs_sent"
    backends = [scripted.as_backend("short"), stack.backend("long")]
    counts = {}
    for sample in (0, "all"):
        config = {"server": {"transport": transport}, "feedback": {"sample": sample}}
        client, _ = start_session(config, backends)
        before = client.envoy.stat(messages)
        read_one_by_one(client, scripted, 20)
        counts[sample] = client.envoy.stat(messages) - before

    assert counts[0] == 2
    # For a sampled exchange, Envoy also sends the response's headers and each event.
    assert counts["all"] > 2 + 20


def test_a_client_that_goes_away_frees_everything(
    client: Any, admin: Any, stack: Any, eventually: Any
) -> None:
    with streamed(client, max_tokens=8000, ignore_eos=True) as response:
        response.readline()
    eventually(lambda: admin.metric("extproc_streams_inflight") == 0)
    eventually(lambda: client.envoy.stat("http.llm.downstream_rq_active") == 0)
    eventually(lambda: stand_in_running(stack.backend("short").url) == 0)


def stand_in_running(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        for line in response.read().decode().splitlines():
            if line.startswith("vllm:num_requests_running{"):
                return float(line.rpartition(" ")[2])
    raise AssertionError("no vllm:num_requests_running")
