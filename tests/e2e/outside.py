"""What a test observes from outside: responses, Envoy's log, the router's admin port."""

import http.client
import json
import socket
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from extproc.demo.stack.access_log import Record, wait_for_records
from extproc.demo.stack.stack import Envoy, Router

from ..patience import PATIENCE_S


@dataclass(frozen=True)
class Response:
    """A response to a client, with its record in Envoy's access log."""

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
    """An HTTP/1.1 client of one Envoy, which also reads its access log."""

    def __init__(self, envoy: Envoy, port: int | None = None) -> None:
        self.envoy = envoy
        self._port = port or envoy.port

    def bypass(self) -> "Client":
        """Return a client whose requests take the same routes but bypass the router."""
        return Client(self.envoy, self.envoy.bypass_port)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = PATIENCE_S,
    ) -> Response:
        """Send a body: bytes unchanged, an iterator in chunks, other values as JSON."""
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
        """Send one user message to the chat API."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
        }
        return self.post("/v1/chat/completions", body | fields, headers)

    def record(self, response: Response) -> Record:
        """Return Envoy's access log record of a response."""
        records = wait_for_records(
            self.envoy.access_log, [response.request_id], PATIENCE_S
        )
        return records[response.request_id]

    def raw(self, data: bytes, *, timeout: float = PATIENCE_S) -> bytes:
        """Send raw bytes; return all bytes that arrive until Envoy closes the
        connection.
        """
        with socket.create_connection(
            ("127.0.0.1", self._port), timeout=timeout
        ) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


class Admin:
    """A client of the router's admin port."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._url = router.admin_url

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(
            f"{self._url}/status", timeout=PATIENCE_S
        ) as response:
            return json.load(response)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples whose labels include ``labels``."""
        with urllib.request.urlopen(
            f"{self._url}/metrics", timeout=PATIENCE_S
        ) as response:
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
