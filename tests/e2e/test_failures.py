"""If the router is absent or slow, the long pool serves every request."""

import http.client
import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.process import Child, free_ports
from extproc.demo.stack.stack import Backend, Router

from .two_chunks import two_chunk_server

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


@pytest.fixture(scope="module")
def own(stack: Any, start_session: Any) -> Any:
    """Return an Envoy and a router that a test may stop."""
    client, admin = start_session({"feedback": {"sample": "all"}}, stack.backends)
    return client, admin.router


def test_a_router_that_is_down_is_not_missed(own: Any, eventually: Any) -> None:
    client, router = own
    assert client.chat("Hello").served_by == "vllm_short"
    router.child.kill()
    for _ in range(3):
        response = client.chat("Hello", {"x-llm-pool": "short"})
        assert (response.status, response.served_by) == (200, "vllm_long")
        assert client.record(response).pool is None
    router.child.start()
    router.wait_ready()
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    assert client.chat("Hello").served_by == "vllm_short"


@pytest.mark.slow
def test_a_router_that_hangs_costs_a_second_and_then_nothing(
    own: Any, start_envoy: Any, eventually: Any
) -> None:
    _, router = own
    client = start_envoy(router=router, as_shipped=True)
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    router.child.pause()
    try:
        response = client.chat("Hello")
        assert (response.status, response.served_by) == (200, "vllm_long")
        # The health check fails, and Envoy stops using the router.
        eventually(lambda: client.envoy.healthy_endpoints("extproc") == 0)
        before = client.envoy.stat("http.llm.ext_proc.message_timeouts")
        for _ in range(3):
            assert client.chat("Hello").served_by == "vllm_long"
        assert client.envoy.stat("http.llm.ext_proc.message_timeouts") == before
    finally:
        router.child.resume()
    eventually(lambda: client.chat("Hello").served_by == "vllm_short")


def test_a_router_that_drains_is_left_in_peace(own: Any, eventually: Any) -> None:
    """After SIGTERM, streams complete, requests continue, and the exit is clean."""
    client, router = own
    assert client.chat("Hello").served_by == "vllm_short"
    assert router.child.stop(grace_s=60) == 0
    response = client.chat("Hello")
    assert (response.status, response.served_by) == (200, "vllm_long")
    router.child.start()
    router.wait_ready()
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)


def test_a_stream_outlives_the_router(
    own: Any, start_envoy: Any, scripted: Any, stack: Any, eventually: Any
) -> None:
    """The router dies while it observes a stream; the client still gets the whole
    stream.
    """
    _, router = own
    backends = [scripted.as_backend("short"), stack.backend("long")]
    client = start_envoy(router=router, backends=backends)
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    dead = threading.Event()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    more = [b'data: {"choices": []}\n\n'] * 600
    scripted.reply = [head + b"connection: close\r\n\r\n", b"data: {}\n\n", dead, *more]
    body: dict[str, Any] = {"model": "m", "stream": True}
    body["messages"] = [{"role": "user", "content": "Hello"}]
    connection = http.client.HTTPConnection("127.0.0.1", client.envoy.port, timeout=60)
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body),
        {"content-type": "application/json"},
    )
    response = connection.getresponse()
    assert response.getheader("x-llm-served-by") == "vllm_short"
    received = response.readline()
    router.child.kill()
    dead.set()
    received += response.read()
    connection.close()
    assert received == b"data: {}\n\n" + b"".join(more)
    router.child.start()
    router.wait_ready()
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)


def test_an_envoy_that_starts_first_finds_the_router_later(
    own: Any, start_envoy: Any, eventually: Any
) -> None:
    _, router = own
    router.child.stop()
    client = start_envoy(router=router)
    assert client.chat("Hello").served_by == "vllm_long"
    router.child.start()
    router.wait_ready()
    eventually(lambda: client.envoy.healthy_endpoints("extproc") == 1)
    assert client.chat("Hello").served_by == "vllm_short"


@pytest.fixture
def two_chunks() -> Iterator[Backend]:
    with two_chunk_server() as port:
        yield Backend("short", 8192, port, Child("", [], Path()))


@pytest.mark.slow
def test_a_stream_is_not_held_by_a_router_that_froze(
    start_envoy: Any, two_chunks: Backend, tmp_path: Path, eventually: Any
) -> None:
    """The connection's keepalive, not the message timeout, ends the wait.

    Envoy's message timeout does not run for the last chunk of a response if the reply
    to the previous chunk arrives later.
    """
    (port,) = free_ports(1)
    program = Path(__file__).with_name("freezing_router.py")
    command = [sys.executable, str(program), str(port)]
    log = tmp_path / "freezing.log"
    with Child(
        "freezing", command, log, {"PYTHONPATH": os.pathsep.join(sys.path)}
    ) as child:
        backends = [
            two_chunks,
            Backend("long", 65536, two_chunks.port, two_chunks.child),
        ]
        client = start_envoy(
            router=Router(child, port, 0), backends=backends, as_shipped=True
        )
        checked = "cluster.extproc.health_check.success"
        eventually(lambda: client.envoy.stat(checked) > 0)
        body = {"model": "m", "messages": [], "stream": True}
        response = client.post("/v1/chat/completions", body)
    assert response.body == b"data: a\n\ndata: [DONE]\n\n"
