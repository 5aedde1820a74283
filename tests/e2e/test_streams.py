"""A response reaches the client as the backend wrote it, looked at or not."""

import http.client
import json
import urllib.request
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


def test_the_first_tokens_arrive_before_the_last_are_made(client: Any) -> None:
    """Nobody holds a stream back: its start is here while the rest is being written."""
    body = {"model": "m", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    body["messages"] = [{"role": "user", "content": "Hello"}]
    connection = http.client.HTTPConnection("127.0.0.1", client.envoy.port, timeout=20)
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body),
        {"content-type": "application/json"},
    )
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    assert client.envoy.stat("http.llm.downstream_rq_active") == 1
    connection.close()


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_streamed_token_costs_no_message(
    transport: str, start_session: Any, stack: Any
) -> None:
    """Unless its exchange is sampled: headers and body of the request are all."""
    messages = "http.llm.ext_proc.stream_msgs_sent"
    counts = {}
    for sample in (0, "all"):
        config = {"server": {"transport": transport}, "feedback": {"sample": sample}}
        client, _ = start_session(config, stack.backends)
        before = client.envoy.stat(messages)
        response = client.chat("Hello", max_tokens=300, ignore_eos=True, stream=True)
        assert response.body.count(b"\n\n") > 300
        counts[sample] = client.envoy.stat(messages) - before

    assert counts[0] == 2
    assert counts["all"] > 5  # Envoy sends what has come since the last one


def test_a_client_that_goes_away_frees_everything(
    client: Any, admin: Any, stack: Any, eventually: Any
) -> None:
    body = {"model": "m", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    body["messages"] = [{"role": "user", "content": "Hello"}]
    connection = http.client.HTTPConnection("127.0.0.1", client.envoy.port, timeout=20)
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body),
        {"content-type": "application/json"},
    )
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    eventually(lambda: admin.metric("extproc_streams_inflight") == 0)
    eventually(lambda: client.envoy.stat("http.llm.downstream_rq_active") == 0)
    eventually(lambda: stand_in_running(stack.backend("short").url) == 0)


def stand_in_running(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith("vllm:num_requests_running{"):
                return float(line.rpartition(" ")[2])
    raise AssertionError("no vllm:num_requests_running")
