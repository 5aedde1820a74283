import http.server
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from extproc.wire import ext_proc_pb2 as pb

PROJECT = Path(__file__).parents[2]
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
WATCH = "/grpc.health.v1.Health/Watch"
LIMIT_S = 60.0
BODY = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}'


class Served:
    """``extproc serve`` as a child process whose log is read line by line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "extproc", "serve", *arguments],
            cwd=PROJECT,
            env={
                "PYTHONPATH": str(PROJECT),
                "EXTPROC_LISTEN": "127.0.0.1:0",
                "EXTPROC_ADMIN": "127.0.0.1:0",
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        # This timer limits every read of the child's log, whatever the child does.
        self._watchdog = threading.Timer(LIMIT_S, self.process.kill)
        self._watchdog.start()
        self.seen: list[dict[str, Any]] = []

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event in the log, and return its fields."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == name:
                return self.seen[-1]
        raise AssertionError(f"no {name} in {self.seen}")

    def rest(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def stop(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    config = tmp_path / "extproc.yaml"
    config.write_text("log: {format: json}\nserver: {drain_timeout_s: 60}\n")
    children: list[Served] = []

    def start(*arguments: str, **environment: str) -> Served:
        arguments = arguments or ("--config", str(config))
        children.append(Served(*arguments, **environment))
        return children[-1]

    yield start
    for child in children:
        child.stop()


class Talk:
    """One ``Process`` stream."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._messages: queue.Queue[bytes | None] = queue.Queue()
        self.replies = channel.stream_stream(PROCESS)(
            iter(self._messages.get, None), timeout=LIMIT_S
        )

    def ask(self, message: pb.ProcessingRequest) -> pb.ProcessingResponse:
        self._messages.put(message.SerializeToString())
        return pb.ProcessingResponse.FromString(next(self.replies))

    def end(self) -> None:
        self._messages.put(None)


def request_headers() -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.protocol_config.SetInParent()
    message.request_headers.headers.headers.extend(
        pb.HeaderValue(key=key, raw_value=value)
        for key, value in {
            ":method": b"POST",
            ":path": b"/v1/chat/completions",
            "content-length": str(len(BODY)).encode(),
        }.items()
    )
    return message


def request_body() -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=BODY, end_of_stream=True))


def headers_of(reply: pb.ProcessingResponse) -> dict[str, bytes]:
    options = reply.request_body.response.header_mutation.set_headers
    return {option.header.key: option.header.raw_value for option in options}


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_a_request_is_routed_and_the_drain_lets_open_streams_finish(
    serve: Serve,
) -> None:
    server = serve()
    admin = f"http://{server.event('admin')['admin']}"
    port = server.event("serving")["port"]
    assert get(f"{admin}/readyz")[0] == 200

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        first = Talk(channel)
        asked = first.ask(request_headers())
        assert asked.mode_override.request_body_mode == pb.ProcessingMode.BUFFERED
        assert headers_of(first.ask(request_body()))["x-llm-pool"] == b"short"
        first.end()
        status, metrics = get(f"{admin}/metrics")
        assert status == 200
        assert "extproc_decisions_total{" in metrics

        watch = channel.unary_stream(WATCH)(b"", timeout=LIMIT_S)
        serving = health_pb2.HealthCheckResponse.FromString(next(watch))
        assert serving.status == serving.SERVING
        opened = Talk(channel)
        opened.ask(request_headers())

        server.process.send_signal(signal.SIGTERM)
        drained = health_pb2.HealthCheckResponse.FromString(next(watch))
        assert drained.status == drained.NOT_SERVING
        server.event("draining")
        assert get(f"{admin}/readyz")[0] == 503
        assert get(f"{admin}/healthz")[0] == 200
        assert server.process.poll() is None
        assert headers_of(opened.ask(request_body()))["x-llm-pool"] == b"short"
        opened.end()

    assert server.process.wait(LIMIT_S) == 0
    assert "stopped" in server.rest()


def test_an_interrupt_stops_it_too(serve: Serve) -> None:
    server = serve()
    server.event("serving")

    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(LIMIT_S) == 0


def test_a_bad_configuration_is_status_2(serve: Serve) -> None:
    server = serve(EXTPROC_LOG_LEVEL="loud")

    assert server.process.wait(LIMIT_S) == 2
    assert "log.level: 'loud'; expected debug" in server.rest()


def test_a_file_that_is_not_there_is_status_2(serve: Serve) -> None:
    server = serve("--config", "/nonexistent/extproc.yaml")

    assert server.process.wait(LIMIT_S) == 2
    assert "No such file" in server.rest()


def test_a_grpc_address_in_use_is_status_1(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = serve(EXTPROC_LISTEN=address)

        assert server.process.wait(LIMIT_S) == 1
    assert f"extproc: server.listen: cannot listen on {address}" in server.rest()


def test_an_admin_address_in_use_costs_only_the_admin_port(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = serve(EXTPROC_ADMIN=address)

        assert server.event("admin_unavailable")["admin"] == address
        port = server.event("serving")["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            talk = Talk(channel)
            assert talk.ask(request_headers()).HasField("mode_override")
            talk.end()


def test_a_unix_socket_is_served(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'grpc.sock'}"
    serve(EXTPROC_LISTEN=address).event("serving")

    with grpc.insecure_channel(address) as channel:
        talk = Talk(channel)
        talk.ask(request_headers())
        assert headers_of(talk.ask(request_body()))["x-llm-pool"] == b"short"
        talk.end()


class AnotherWindow(http.server.BaseHTTPRequestHandler):
    """A vLLM server with a window of 4,096 tokens."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            json.dumps({"data": [{"id": "m", "max_model_len": 4096}]}).encode()
            if self.path == "/v1/models"
            else b"vllm:num_requests_waiting 0\nvllm:num_requests_running 0\n"
            b"vllm:kv_cache_usage_perc 0\n"
        )

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_another_window_than_configured_ends_in_one_line(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnotherWindow) as vllm:
        threading.Thread(target=vllm.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{vllm.server_port}"
        config = tmp_path / "extproc.yaml"
        pool = {"name": "a", "max_model_len": 8192, "endpoints": [url]}
        config.write_text(json.dumps({"pools": [pool]}))
        done = subprocess.run(
            [sys.executable, "-m", "extproc", "serve", f"--config={config}"],
            env={**os.environ, "EXTPROC_LISTEN": "127.0.0.1:0"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        vllm.shutdown()
    assert done.returncode == 2
    *logged, last = done.stderr.splitlines()
    assert last == f"extproc: {config}: pool a: max_model_len: 8192; {url} has 4096"
    assert len(logged) == 1  # the watch's warning
    assert "max_model_len_differs" in logged[0]
