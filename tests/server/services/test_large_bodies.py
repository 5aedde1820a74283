"""Large bodies are parsed in turns, so small bodies do not wait for large ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence

import pytest

from extproc.config import Config
from extproc.exchange.body_parser import BodyParser
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.json_elider import CHUNK_BYTES, DIRECT_BYTES
from extproc.exchange.settings import ExchangeSettings
from extproc.exchange.source import Source
from extproc.rpc.call import Call, Replies, RpcError, StatusCode
from extproc.server.observe.metrics import Metrics
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.ext_proc import (
    PROCESS,
    ExtProcService,
)
from extproc.server.services.ext_proc_stream import MAX_HELD_MESSAGES
from extproc.wire import ext_proc_pb2 as pb

from ..in_force import make_in_force, make_router

MIB = 1 << 20
Calls = list[Callable[[], None]]


class Server:
    """A service whose event loop is driven by the test."""

    def __init__(self, feedback: float = 0.0) -> None:
        self.loop: Calls = []
        self.now_s = 0.0
        self.router = make_router(Config())
        self.metrics = Metrics()
        self.service = ExtProcService(
            make_in_force(
                self.router,
                settings=ExchangeSettings(max_body_bytes=16 * MIB),
                sampler=FeedbackSampler(feedback, adaptive=False),
            ),
            self.metrics,
            defer=self.loop.append,
            clock=lambda: self.now_s,
            slices=TimeSlices(self.loop.append),
        )

    def turn(self) -> None:
        now, self.loop[:] = self.loop[:], []
        for call in now:
            call()

    def answering_s(self, phase: str) -> float:
        """Return the total time of the replies in a phase, in seconds."""
        (family,) = self.metrics.message_seconds.collect()
        for sample in family.samples:
            if sample.name.endswith("_sum") and sample.labels["phase"] == phase:
                return sample.value
        raise AssertionError(phase)

    def run(self) -> int:
        """Run the loop until it is idle; return the number of turns."""
        slices = 0
        while self.loop:
            self.turn()
            slices += 1
        return slices


class Client:
    """One stream and the replies to it."""

    def __init__(
        self, server: Server, body_mode: int = pb.ProcessingMode.NONE, **headers: str
    ) -> None:
        self.answers: list[bytes] = []
        self.ended: bool | RpcError = False
        call = server.service.open(PROCESS, {}, self.take)
        assert call is not None
        self.call: Call = call
        fields = {
            ":method": "POST",
            ":path": "/v1/chat/completions",
            "content-length": "1000",
        } | {key.replace("_", "-"): value for key, value in headers.items()}
        message = pb.ProcessingRequest()
        message.protocol_config.request_body_mode = body_mode  # type: ignore[assignment]
        message.protocol_config.response_body_mode = body_mode  # type: ignore[assignment]
        message.request_headers.headers.headers.extend(
            pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in fields.items()
        )
        self.tell(message)

    def take(self, messages: Sequence[bytes], end: bool | RpcError = False) -> None:
        self.answers += messages
        self.ended = self.ended or end

    def tell(self, message: pb.ProcessingRequest) -> Replies:
        replies = self.call.receive(message.SerializeToString())
        self.take(*replies)
        return replies

    def send_body(self, body: bytes, *, end: bool = True) -> Replies:
        message = pb.ProcessingRequest()
        message.request_body.body = body
        message.request_body.end_of_stream = end
        return self.tell(message)

    def send_chunks(self, body: bytes, *, end: bool = True) -> None:
        """Send a body in chunks, as Envoy does in modes without buffering."""
        for start in range(0, len(body), CHUNK_BYTES):
            chunk = body[start : start + CHUNK_BYTES]
            last = start + CHUNK_BYTES >= len(body)
            self.send_body(chunk, end=end and last)

    def send_trailers(self) -> Replies:
        message = pb.ProcessingRequest()
        message.request_trailers.SetInParent()
        return self.tell(message)

    @property
    def reason(self) -> str:
        """Return the decision's reason, which is in the metadata of the replies."""
        for answer in self.answers:
            metadata = pb.ProcessingResponse.FromString(answer).dynamic_metadata
            fields = metadata.fields["extproc.token_budget"].struct_value.fields
            if "reason" in fields:
                return fields["reason"].string_value
        return ""


def chat(size: int) -> bytes:
    text = ("It was a bright cold day in April. " * (size // 35 + 1))[:size]
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


SMALL, LARGE = chat(100), chat(MIB)


def test_a_large_body_is_read_in_turns() -> None:
    server = Server()
    client = Client(server)

    assert client.send_body(LARGE) == ((), False)
    slices = server.run()

    assert slices == -(-len(LARGE) // CHUNK_BYTES)
    assert client.reason == "over_capacity"
    assert client.ended
    at_once = server.service
    at_once.slices = None
    other = Client(server)
    other.send_body(LARGE)
    assert other.answers == client.answers


def test_what_is_small_does_not_wait() -> None:
    server = Server()
    large = [Client(server) for _ in range(5)]
    for client in large:
        client.send_body(LARGE)

    small = Client(server)
    small.send_body(SMALL)

    assert small.ended
    assert small.reason == "within_threshold"
    assert not any(client.ended for client in large)
    server.turn()
    assert len(server.loop) == 1  # one step a turn, for all streams
    server.run()
    assert all(client.ended for client in large)


def test_up_to_a_size_a_body_is_read_at_once() -> None:
    server = Server()
    client = Client(server)

    client.send_body(chat(DIRECT_BYTES - 1000))

    assert client.ended
    assert not server.loop


@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize(
    "mode", [pb.ProcessingMode.STREAMED, pb.ProcessingMode.FULL_DUPLEX_STREAMED]
)
def test_a_body_that_comes_in_chunks_is_read_in_turns(
    mode: int, trailers: bool
) -> None:
    server = Server()
    client = Client(server, mode)

    client.send_chunks(LARGE, end=not trailers)
    if trailers:
        client.send_trailers()

    assert client.reason == ""
    slices = server.run()
    assert slices == -(-len(LARGE) // CHUNK_BYTES)
    assert client.reason == "over_capacity"
    at_once = server.service
    at_once.slices = None
    other = Client(server, mode)
    other.send_chunks(LARGE, end=not trailers)
    if trailers:
        other.send_trailers()
    assert other.answers == client.answers


def test_a_stream_that_must_not_just_end_ends_in_an_error() -> None:
    """In full duplex, bytes that the router does not return are lost; a clean end would
    hide this.
    """
    server = Server()
    client = Client(server, pb.ProcessingMode.FULL_DUPLEX_STREAMED)
    client.send_chunks(LARGE)
    again = pb.ProcessingRequest()
    again.request_headers.SetInParent()

    assert client.tell(again) == ((), False)
    server.run()

    assert client.reason == "over_capacity"
    assert isinstance(client.ended, RpcError)
    assert client.ended.status is StatusCode.INTERNAL


def test_a_body_that_may_grow_is_read_in_turns() -> None:
    server = Server()
    client = Client(server, content_encoding="gzip")

    assert client.send_body(gzip.compress(LARGE, mtime=0)) == ((), False)
    slices = server.run()

    assert client.reason == "over_capacity"
    assert slices > len(LARGE) // CHUNK_BYTES


def test_the_time_to_answer_begins_with_the_message() -> None:
    server = Server(feedback=1.0)
    client = Client(server)
    server.now_s = 10.0
    client.send_body(LARGE)
    server.turn()
    server.now_s = 13.0
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.add(key=":status", raw_value=b"408")
    client.tell(message)
    server.now_s = 14.0
    server.run()

    assert server.answering_s("request_body") == 4.0
    assert server.answering_s("response_headers") == 1.0


def test_a_stream_that_is_gone_is_read_no_further() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)
    server.turn()

    client.call.closed(True)

    assert server.run() == 1
    assert len(client.answers) == 1
    assert client.call.half_closed() == ((), True)


def test_messages_wait_for_the_body_before_them() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.add(key=":status", raw_value=b"408")

    assert client.tell(message) == ((), False)
    assert client.call.half_closed() == ((), False)
    server.run()

    assert client.reason == "over_capacity"
    assert len(client.answers) == 2
    assert client.ended


def test_few_messages_wait() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)
    message = pb.ProcessingRequest()
    message.response_headers.SetInParent()

    for _ in range(MAX_HELD_MESSAGES):
        client.tell(message)
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        client.tell(message)
    client.call.closed(True)
    server.run()

    assert len(client.answers) == 1


def test_the_end_of_the_peer_s_side_waits_for_the_answer() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)

    assert client.call.half_closed() == ((), False)
    assert not client.ended
    server.run()

    assert client.ended
    assert client.call.half_closed() == ((), True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (LARGE[:-3], "unparsable"),
        (b'{"messages":[' + b"{}," * 400_000 + b"{}]}", "too_large"),
        (LARGE + b" " * 16 * MIB, "too_large"),
    ],
    ids=["cut off", "too many elements", "over the cap"],
)
def test_what_cannot_be_read_goes_to_the_default_pool(body: bytes, reason: str) -> None:
    server = Server()
    client = Client(server)

    client.send_body(body)
    server.run()

    assert client.ended
    assert client.reason == reason


def test_a_fault_while_reading_is_counted_and_costs_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(parser: BodyParser, source: Source) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(BodyParser, "_parse", fail)
    server = Server()
    client = Client(server)

    assert client.send_body(LARGE) == ((), False)
    server.run()

    assert client.ended is True
    assert client.reason == "fault"
    assert server.metrics.registry.get_sample_value("extproc_faults_total") == 1


def test_a_stream_shows_where_it_stands() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)
    client.send_body(b"")

    assert repr(client.call) == (
        "<ExtProcStream <Exchange BufferedRequest StreamedResponse waits for "
        "request_body, request undecided, response ignored, decision none>, "
        "1 messages queued>"
    )


def test_a_stream_that_closes_while_its_body_is_parsed_ended_in_the_request() -> None:
    server = Server()
    client = Client(server)
    client.send_body(LARGE)
    client.call.closed(True)
    server.run()

    assert len(client.answers) == 1
    ended = server.metrics.registry.get_sample_value(
        "extproc_exchanges_ended_total", {"state": "request_body"}
    )
    assert ended == 1
