"""An Envoy whose limits are smaller than the bodies that the router requests."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.process import Child
from extproc.demo.stack.stack import Backend, Router, Stack, router

from ..patience import PATIENCE_S, wait_until
from .conftest import start_until_killed
from .outside import Admin, Client, Response
from .unsized import send_chunked, send_http2

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

KIB = 1 << 10
BODY_TIMEOUT_S = 0.5
SIZES = [80_000, 120_000, 200_000, 400_000, 900_000]
Send = Callable[[Client, bytes], Response]


def small(config: dict[str, Any]) -> None:
    """Set the limits of a gateway that is not configured for the router."""
    (listener,) = config["static_resources"]["listeners"][:1]
    listener["per_connection_buffer_limit_bytes"] = 32 * KIB
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http2_protocol_options"] = {
        "initial_stream_window_size": 64 * KIB,
        "initial_connection_window_size": 1024 * KIB,
    }
    manager["request_timeout"] = "0s"
    manager["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    for host in manager["route_config"]["virtual_hosts"]:
        del host["request_body_buffer_limit"]


def chat(size: int) -> bytes:
    message = {"role": "user", "content": "Hello"}
    body = json.dumps({"model": "m", "max_tokens": 4, "messages": [message]})
    return body.encode() + b" " * (size - len(body))


def pieces(body: bytes) -> list[bytes]:
    return [body[at : at + 16_000] for at in range(0, len(body), 16_000)]


SENDERS: dict[str, Send] = {
    "HTTP/1.1": lambda client, body: client.post("/v1/chat/completions", body),
    "chunked": lambda client, body: send_chunked(client, pieces(body)),
    "HTTP/2": lambda client, body: send_http2(
        client, pieces(body), headers={"content-length": str(len(body))}
    ),
    "HTTP/2 without a length": lambda client, body: send_http2(client, pieces(body)),
}


@pytest.fixture(params=["native", "grpcio"])
def learner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Router]:
    """Start a router that has learned nothing yet."""
    server = {"transport": request.param, "body_timeout_s": BODY_TIMEOUT_S}
    started = router({"server": server}, tmp_path)
    with contextlib.ExitStack() as running:
        start_until_killed(started.child, running)
        started.wait_ready()
        yield started


@pytest.fixture
def system(learner: Router, start_envoy: Callable[..., Client]) -> tuple[Client, Admin]:
    """Start an Envoy with small limits in front of this router."""
    return start_envoy(learner, change=small), Admin(learner)


def test_at_most_three_requests_are_lost_and_none_hangs(
    system: tuple[Client, Admin],
) -> None:
    client, admin = system
    statuses = []
    for size in SIZES:
        for send in SENDERS.values():
            response = send(client, chat(size))
            statuses.append(response.status)
            assert response.status in {200, 413}
            if response.status == 200:
                assert response.served_by == "vllm_long"

    assert len(statuses) == len(SIZES) * len(SENDERS)
    assert statuses.count(413) <= 3
    lost = admin.metric("extproc_bodies_lost_total")
    assert 3 <= lost <= 3 + statuses.count(413)
    unread = admin.metric("extproc_decisions_total", reason="gateway_limit")
    assert unread == len(statuses) - lost
    assert admin.metric("extproc_requested_body_limit_bytes") < SIZES[0]
    assert admin.metric("extproc_faults_total") == 0
    assert admin.metric("extproc_protocol_errors_total") == 0


def test_an_upgrade_that_is_never_to_end_does_not_hang(
    learner: Router,
    stack: Stack,
    start_envoy: Callable[..., Client],
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(PATIENCE_S)
    long = Backend("long", 8192, server.getsockname()[1], Child("raw", [], Path()))
    pools = [stack.backend("short"), long]
    client, admin = start_envoy(learner, pools, small), Admin(learner)
    body = chat(500)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        "connection: upgrade\r\nupgrade: websocket\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    address = ("127.0.0.1", client.envoy.port)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + body)
        with server:
            seen = b"GET"
            while seen.startswith(b"GET"):  # Envoy's health checks
                backend, _ = server.accept()
                with backend:
                    seen = backend.recv(1024)
                    backend.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            assert seen.startswith(b"POST /v1/chat/completions ")
            assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")

    assert admin.metric("extproc_bodies_lost_total", how="timeout") == 1


def test_a_slow_client_is_answered_by_the_long_pool(
    system: tuple[Client, Admin],
) -> None:
    client, admin = system

    def given_up() -> None:
        wait_until(lambda: admin.metric("extproc_bodies_lost_total", how="timeout"))

    waits = iter([lambda: None, given_up])
    response = send_chunked(
        client, pieces(chat(20_000)), lambda: next(waits, lambda: None)()
    )

    assert (response.status, response.served_by) == (200, "vllm_long")
    assert client.chat("Hello").served_by == "vllm_short"
