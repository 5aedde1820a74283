"""How the service treats requested bodies that do not arrive in time."""

import heapq
import logging
from collections.abc import Callable
from typing import Any

import pytest

from extproc.config import Config
from extproc.exchange.gateway_limit import FIRST_PAUSE_S
from extproc.rpc.call import Call
from extproc.server.observe.metrics import Metrics
from extproc.server.services.ext_proc import PROCESS, ExtProcService
from extproc.server.services.requested_bodies import LOG_INTERVAL_S
from extproc.wire import ext_proc_pb2 as pb

from ..in_force import make_in_force

TIMEOUT_S = Config().server.body_timeout_s


class Clock:
    """A clock that the test advances; it calls each callback when it is due."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_s + seconds, id(call), call))

    def pass_time(self, seconds: float) -> None:
        end = self.now_s + seconds
        while self._due and self._due[0][0] <= end:
            self.now_s, _, call = heapq.heappop(self._due)
            call()
        self.now_s = end

    @property
    def timers(self) -> int:
        return len(self._due)


class Server:
    """A service whose clock the test advances."""

    def __init__(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.in_force = make_in_force()
        self.service = ExtProcService(
            self.in_force, self.metrics, later=self.clock.later, clock=self.clock
        )
        self.ended: list[Call] = []

    def open(self, length: int | None = 100_000, mode: int = 0) -> Call:
        call: Any = None

        def send(messages: Any, end: Any = False) -> None:
            assert (list(messages), end) == ([], True)
            self.ended.append(call)
            call.closed(False)

        call = self.service.open(PROCESS, {}, send)
        call.receive(headers(length, mode))
        return call

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def headers(length: int | None, mode: int = 0) -> bytes:
    fields = {":path": "/v1/chat/completions", ":method": "POST"}
    if length is not None:
        fields["content-length"] = str(length)
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = mode  # type: ignore[assignment]
    message.request_headers.headers.headers.extend(
        pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in fields.items()
    )
    return message.SerializeToString()


def body(data: bytes = b"{}", *, end: bool = True) -> bytes:
    chunk = pb.HttpBody(body=data, end_of_stream=end)
    return pb.ProcessingRequest(request_body=chunk).SerializeToString()


def refusal() -> bytes:
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.append(
        pb.HeaderValue(key=":status", raw_value=b"413")
    )
    return message.SerializeToString()


def test_a_body_that_does_not_come_in_time_is_given_up() -> None:
    server = Server()
    first = server.open()
    server.clock.pass_time(TIMEOUT_S / 2)
    second = server.open()

    server.clock.pass_time(TIMEOUT_S / 2)
    assert server.ended == [first]
    server.clock.pass_time(TIMEOUT_S / 2)

    assert server.ended == [first, second]
    assert server.metric("extproc_bodies_lost_total", how="timeout") == 2
    assert server.metric("extproc_not_routed_total", reason="body_late") == 2
    assert server.metric("extproc_streams_inflight") == 0
    assert server.clock.timers == 0


def test_what_came_in_time_is_not_cut() -> None:
    server = Server()
    call = server.open()
    server.clock.pass_time(TIMEOUT_S * 0.9)
    replies, _ = call.receive(body())

    server.clock.pass_time(10 * TIMEOUT_S)

    assert len(replies) == 1
    assert server.ended == []
    assert server.metric("extproc_bodies_lost_total", how="timeout") is None
    assert len(server.service.requested_bodies) == 0


def test_parts_of_a_body_that_come_one_by_one_each_have_the_time() -> None:
    server = Server()
    call = server.open(mode=pb.ProcessingMode.STREAMED)
    for _ in range(5):
        server.clock.pass_time(TIMEOUT_S * 0.9)
        call.receive(body(b" " * 10, end=False))
    assert server.ended == []

    server.clock.pass_time(TIMEOUT_S)

    assert server.ended == [call]


def test_a_full_duplex_body_is_waited_for_as_nothing_else_keeps_it() -> None:
    server = Server()
    server.open(mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED)

    server.clock.pass_time(100 * TIMEOUT_S)

    assert server.ended == []


def test_a_stream_that_ended_is_not_waited_for() -> None:
    server = Server()
    call = server.open()
    call.closed(True)  # Envoy has exited with all its buffers, so this shows no limit

    server.clock.pass_time(TIMEOUT_S)

    assert server.ended == []
    assert server.metric("extproc_bodies_lost_total", how="ended") is None


def end_early(call: Call) -> None:
    assert call.half_closed() == ((), True)
    call.closed(False)


def refuse(call: Call) -> None:
    call.receive(refusal())
    call.closed(False)


@pytest.mark.parametrize(
    ("how", "lose"), [("ended", end_early), ("refused", refuse), ("timeout", None)]
)
@pytest.mark.parametrize("length", [100_000, None])
def test_three_lost_bodies_lower_what_is_requested_and_it_is_tried_again(
    how: str,
    lose: Callable[[Call], None] | None,
    length: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    caplog.set_level(logging.WARNING)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            call = server.open(length)
            if lose is None:
                server.clock.pass_time(TIMEOUT_S)
            else:
                lose(call)

    assert server.metric("extproc_bodies_lost_total", how=how) == 3
    assert server.in_force.now.gateway_limit.limit_bytes is not None
    lines = [r for r in caplog.records if r.message == "body_not_handed_over"]
    assert len(lines) == 1
    server.open(length)
    assert len(server.service.requested_bodies) == 0
    reason = server.metrics.decisions.by("reason")
    assert reason == {"gateway_limit": 1}

    server.clock.pass_time(FIRST_PAUSE_S)
    server.open(length)
    server.open(length)

    assert len(server.service.requested_bodies) == 1


def test_the_log_has_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    caplog.set_level(logging.WARNING)
    for _ in range(30):
        end_early(server.open(1000))
        server.clock.pass_time(LOG_INTERVAL_S / 10)

    assert [r.message for r in caplog.records] == ["body_not_handed_over"] * 3
