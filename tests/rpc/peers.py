"""A service with small calls, and an h2 (python-hyper) client that checks its frames."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings

from extproc.rpc.call import RpcError, StatusCode
from extproc.rpc.connection import Connection
from extproc.rpc.limits import Limits

HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/test.Test/Echo",
    ":authority": "router",
    "te": "trailers",
    "content-type": "application/grpc",
}


Seen = TypeVar("Seen", bound=Event)


def as_text(headers: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {str(name): str(value) for name, value in headers}


def framed(*messages: bytes) -> bytes:
    return b"".join(b"\0" + len(m).to_bytes(4, "big") + m for m in messages)


def unframed(data: bytes) -> list[bytes]:
    messages = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert data[0] == 0
        assert len(data) >= 5 + size
        messages.append(data[5 : 5 + size])
        data = data[5 + size :]
    return messages


@dataclass
class TestCall:
    """A call whose path selects its behavior; on some paths, the messages are commands."""

    __test__ = False

    path: str
    headers: dict[str, str]
    send: Any
    received: list[bytes] = field(default_factory=list)
    closed_with: list[bool] = field(default_factory=list)

    def receive(self, message):
        self.received.append(message)
        match self.path.rpartition("/")[2]:
            case "Echo":
                return (message,), False
            case "Once":
                return (message,), True
            case "Repeat":
                return (message,) * 3, False
            case "Silent" | "Wait":
                return (), False
            case "Fail":
                raise ZeroDivisionError("a bug in the application")
            case "Deny":
                raise RpcError(StatusCode.NOT_FOUND, "no such thing: 100% gone é")
            case "End":
                return (), True
        raise AssertionError(self.path)

    def half_closed(self):
        match self.path.rpartition("/")[2]:
            case "FailLate":
                raise ZeroDivisionError("a bug in the application")
            case "Silent":
                return (b"%d" % len(self.received),), True
            case "Wait":
                return (), False
        return (), True

    def closed(self, cancelled):
        self.closed_with.append(cancelled)
        if self.path.endswith("FailLater"):
            raise ZeroDivisionError("a bug in the application")


class TestService:
    """A service that opens calls and records them."""

    __test__ = False

    def __init__(self):
        self.calls = []

    def open(self, path, headers, send):
        if not path.startswith("/test.Test/"):
            return None
        if path.endswith("FailEarly"):
            raise ZeroDivisionError("a bug in the application")
        if path.endswith("DenyEarly"):
            raise RpcError(StatusCode.UNAVAILABLE, "not now")
        call = TestCall(path, dict(headers), send)
        self.calls.append(call)
        if path.endswith("SendEarly"):
            send((b"early",), True)
        return call


class Machine:
    """The HTTP/2 machine under test, with everything that it reports."""

    def __init__(self, limits: Limits | None = None, log=None, held=None):
        self.service = TestService()
        self.reports = []
        self.wakes = 0
        self.now = 100.0
        self.connection = Connection(
            self.service,
            limits or Limits(),
            lambda where, error: self.reports.append((where, error)),
            self._woken,
            log,
            held,
        )

    def _woken(self):
        self.wakes += 1

    @property
    def calls(self) -> list[TestCall]:
        return self.service.calls

    def feed(self, data: bytes, **options) -> bytes:
        """Feed bytes in as many turns as the machine needs, and return its output."""
        self.connection.receive(data, self.now, **options)
        while self.connection.behind:
            self.connection.receive(b"", self.now, **options)
        return self.connection.take()


@dataclass
class Response:
    """A client's view of one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        return unframed(self.data)

    @property
    def status(self) -> int:
        return int({**self.headers, **self.trailers}["grpc-status"])


class H2Peer:
    """An h2 client connected to a machine; h2 raises on any invalid byte.

    Args:
        acknowledge: whether to return flow-control credit for received data.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        acknowledge: bool = True,
        settings: dict[int, int] | None = None,
    ):
        self.machine = Machine(limits)
        self.client = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8")
        )
        if settings:
            self.client.local_settings = Settings(
                True, {SettingCodes(k): v for k, v in settings.items()}
            )
        self.events: list[Event] = []
        self.responses: dict[int, Response] = {}
        self.acknowledge = acknowledge
        self.client.initiate_connection()
        self.exchange()

    def exchange(self) -> None:
        """Transfer bytes in both directions until neither side has any."""
        while True:
            sent = self.client.data_to_send()
            received = self.machine.feed(sent)
            if not sent and not received:
                return
            for event in self.client.receive_data(received):
                self.events.append(event)
                self._note(event)

    def _note(self, event: Event) -> None:
        stream_id = getattr(event, "stream_id", None)
        if not stream_id:
            return
        response = self.responses.setdefault(stream_id, Response())
        match event:
            case ResponseReceived():
                response.headers = as_text(event.headers)
            case DataReceived():
                response.data += event.data
                if self.acknowledge and event.flow_controlled_length:
                    self.client.acknowledge_received_data(
                        event.flow_controlled_length, stream_id
                    )
            case TrailersReceived():
                response.trailers = as_text(event.headers)
            case StreamEnded():
                response.ended = True
            case StreamReset():
                response.reset = event.error_code

    def request(
        self,
        path: str = "/test.Test/Echo",
        *messages: bytes,
        ends: bool = False,
        headers: dict[str, str | None] | None = None,
    ) -> int:
        """Open a stream and send messages; return the stream's identifier."""
        stream_id = self.client.get_next_available_stream_id()
        merged = {**HEADERS, ":path": path, **(headers or {})}
        self.client.send_headers(
            stream_id,
            [(name, value) for name, value in merged.items() if value is not None],
            end_stream=ends and not messages,
        )
        if messages:
            self.client.send_data(stream_id, framed(*messages), end_stream=ends)
        self.exchange()
        return stream_id

    def response(self, stream_id: int) -> Response:
        return self.responses.setdefault(stream_id, Response())

    def has(self, kind: type[Seen]) -> list[Seen]:
        return [event for event in self.events if isinstance(event, kind)]
