"""A real Envoy, a real router and two stand-ins, started once for all of tests/e2e."""

import contextlib
import http.client
import http.server
import json
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.access_log import Record, wait_for_records
from extproc.demo.envoy_config import find_config
from extproc.demo.process import Child, free_ports
from extproc.demo.stack import (
    Backend,
    Envoy,
    Router,
    Stack,
    envoy,
    router,
    running,
    stand_in,
)

SHORT_WINDOW, LONG_WINDOW = 8192, 65536
LEARN_ALL = {"feedback": {"sample": "all"}}


@dataclass(frozen=True)
class Response:
    """What a client saw, and what Envoy wrote down about it."""

    status: int
    headers: dict[str, str]
    body: bytes
    request_id: str
    trailers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def served_by(self) -> str | None:
        return self.headers.get("x-llm-served-by")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-envoy-attempt-count", "0"))


class Client:
    """Talks HTTP/1.1 to one Envoy, and reads its access log."""

    def __init__(self, envoy: Envoy, port: int | None = None) -> None:
        self.envoy = envoy
        self._port = port or envoy.port

    def bypass(self) -> "Client":
        """The same routes without the router."""
        return Client(self.envoy, self.envoy.bypass_port)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 20,
    ) -> Response:
        """Send a request; a body that is no bytes goes as JSON, an iterator chunked."""
        if body is not None and not isinstance(body, bytes | Iterator):
            body = json.dumps(body).encode()
        request_id = str(uuid.uuid4())
        all_headers = {
            "content-type": "application/json",
            "x-request-id": request_id,
            **(headers or {}),
        }
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._port, timeout=timeout
        )
        try:
            connection.request(method, path, body, all_headers)
            response = connection.getresponse()
            content = response.read()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, content, request_id)
        finally:
            connection.close()

    def post(
        self,
        path: str,
        body: Any,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Response:
        return self.request("POST", path, body, headers, **options)

    def chat(
        self, content: str, headers: dict[str, str] | None = None, **fields: Any
    ) -> Response:
        """One user message to the chat API."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
        }
        return self.post("/v1/chat/completions", body | fields, headers)

    def record(self, response: Response) -> Record:
        """Envoy's access log line of a response."""
        records = wait_for_records(self.envoy.access_log, [response.request_id])
        return records[response.request_id]

    def raw(self, data: bytes, *, timeout: float = 20) -> bytes:
        """Send bytes as they are; return all that comes until Envoy closes."""
        with socket.create_connection(
            ("127.0.0.1", self._port), timeout=timeout
        ) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


def wait_until(condition: Callable[[], Any], timeout_s: float = 15) -> Any:
    """Wait until ``condition()`` is true, and return what it was."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)
    return value


class Admin:
    """The router's admin port."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._url = router.admin_url

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/status", timeout=5) as response:
            return json.load(response)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name whose labels include ``labels``."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        total = 0.0
        for line in lines:
            sample, _, value = line.rpartition(" ")
            sample_name, _, rest = sample.partition("{")
            if sample_name == name and all(
                f'{k}="{v}"' in rest for k, v in labels.items()
            ):
                total += float(value)
        return total


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


def start_until_killed(child: Child, started: contextlib.ExitStack) -> None:
    """Start it; a clean end takes a second, and is looked at elsewhere."""
    child.start()
    started.callback(child.kill)


@pytest.fixture(scope="session")
def stack(directory: Path) -> Iterator[Stack]:
    """Everything, with every response looked at."""
    backends = [
        stand_in("short", SHORT_WINDOW, 64, directory, speed=50),
        stand_in("long", LONG_WINDOW, 16, directory, speed=50),
    ]
    with running(directory, backends, LEARN_ALL, find_config()) as started:
        yield started
        started.envoy.child.kill()
        started.router.child.kill()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Client:
    return Client(stack.envoy)


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Admin:
    return Admin(stack.router)


@pytest.fixture(scope="session")
def start_session(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., tuple[Client, Admin]]]:
    """Starts another router and an Envoy of its own, for the rest of the session."""
    with contextlib.ExitStack() as started:

        def start(
            config: dict[str, Any], backends: list[Backend]
        ) -> tuple[Client, Admin]:
            directory = tmp_path_factory.mktemp("session")
            new_router = router(config, directory)
            start_until_killed(new_router.child, started)
            new_router.wait_ready()
            new = envoy(find_config(), backends, new_router.port, directory)
            start_until_killed(new.child, started)
            new.wait_ready()
            return Client(new), Admin(new_router)

        yield start


@pytest.fixture(scope="session")
def start_session_envoy(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Starts another Envoy on the stack's router, for the rest of the session."""
    with contextlib.ExitStack() as started:

        def start(
            change: Callable[[dict[str, Any]], None] | None = None,
            backends: list[Backend] | None = None,
        ) -> Client:
            directory = tmp_path_factory.mktemp("envoy")
            new = envoy(
                find_config(),
                backends or stack.backends,
                stack.router.port,
                directory,
                change=change,
            )
            start_until_killed(new.child, started)
            new.wait_ready()
            return Client(new)

        yield start


@pytest.fixture(scope="session")
def optimistic(
    stack: Stack, start_session: Callable[..., tuple[Client, Admin]]
) -> tuple[Client, Admin]:
    """An Envoy whose router believes that the short pool holds 30,000 tokens."""
    pools = [
        {"name": "short", "max_model_len": 30_000},
        {"name": "long", "max_model_len": LONG_WINDOW},
    ]
    return start_session(LEARN_ALL | {"pools": pools}, stack.backends)


@pytest.fixture(scope="session")
def optimistic_client(optimistic: tuple[Client, Admin]) -> Client:
    return optimistic[0]


def _check_case(
    client: Client, case: dict[str, Any], model: str | None = None
) -> Response:
    """Send a case of ``cases.yaml``, and hold what came back to what it expects."""
    body = case["body"]
    if body and model:
        body = body | {"model": model}
    response = client.post(case["path"], body, case.get("headers"), timeout=120)
    record = client.record(response)
    seen = {
        "status": response.status,
        "attempts": response.attempts,
        "backend": (response.served_by or "").removeprefix("vllm_"),
        "pool": record.pool,
        "reason": record.reason,
        "category": record.category,
    }
    expected = case["expect"]
    assert {key: seen[key] for key in expected} == expected, response.body[:500]
    return response


@pytest.fixture(scope="session")
def check_case() -> Callable[..., Response]:
    return _check_case


@pytest.fixture(scope="session")
def client_of() -> type[Client]:
    return Client


@pytest.fixture(scope="session")
def admin_of() -> type[Admin]:
    return Admin


@pytest.fixture
def start_envoy(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Starts another Envoy that may find parts of the stack missing."""
    with contextlib.ExitStack() as started:

        def start(
            router: Router = stack.router,
            backends: list[Backend] | None = None,
            change: Callable[[dict[str, Any]], None] | None = None,
        ) -> Client:
            new = envoy(
                find_config(),
                backends or stack.backends,
                router.port,
                tmp_path_factory.mktemp("envoy"),
                change=change,
            )
            start_until_killed(new.child, started)
            new.wait_serving()
            return Client(new)

        yield start


@dataclass(frozen=True)
class Received:
    """A request as a backend got it."""

    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedBackend:
    """A backend that answers with given bytes, over a socket of its own.

    ``reply`` is what it writes after it has read a request: a whole HTTP response, in
    the pieces in which it is to be written.
    """

    def __init__(self) -> None:
        self.reply: list[bytes] = [http_response(200, b"{}")]
        self.received: list[Received] = []
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.wfile.write(http_response(200, b""))

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.received.append(
                    Received(self.path, headers, self._body(headers))
                )
                for piece in script.reply:
                    self.wfile.write(piece)
                    self.wfile.flush()
                self.close_connection = True

            def _body(self, headers: dict[str, str]) -> bytes:
                if headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(headers.get("content-length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return body

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def as_backend(self, pool: str) -> Backend:
        """As part of a stack; there is no process to wait for."""
        return Backend(pool, SHORT_WINDOW, self.port, Child("scripted", [], Path()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def http_response(
    status: int, body: bytes, content_type: str = "application/json"
) -> bytes:
    """A whole HTTP/1.1 response."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def respond() -> Callable[..., bytes]:
    return http_response


@pytest.fixture
def unused_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedBackend]:
    backend = ScriptedBackend()
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def scripted_client(
    stack: Stack, scripted: ScriptedBackend, start_session_envoy: Callable[..., Client]
) -> Client:
    """An Envoy whose short pool is the scripted backend."""
    return start_session_envoy(
        backends=[scripted.as_backend("short"), stack.backend("long")]
    )


class _CaseLoader(yaml.SafeLoader):
    """YAML with ``!repeat [text, count]``."""


def _repeat(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    text, count = loader.construct_sequence(node)
    return str(text) * int(count)


_CaseLoader.add_constructor("!repeat", _repeat)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = yaml.load(
            (Path(__file__).parent / "cases.yaml").read_text(), _CaseLoader
        )
        metafunc.parametrize("case", cases, ids=[case["name"] for case in cases])
