import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import generate_latest

from extproc.config import Config
from extproc.exchange.events import Decided
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.bound import Bounded
from extproc.routing.estimate import Prediction
from extproc.routing.features import Features
from extproc.routing.policy import PoolLoad
from extproc.routing.ratio import TextEma
from extproc.routing.risk import NoMargin
from extproc.routing.router import Decision, Router
from extproc.rpc.call import Call, RpcError
from extproc.server.observe.metrics import Metrics
from extproc.server.services.ext_proc import PROCESS, ExtProcService
from extproc.server.services.in_flight import InFlight
from extproc.server.services.watchers import Tracer
from extproc.wire import ext_proc_pb2 as pb

from ..in_force import make_in_force, make_router

SECRET = "quetzalcoatlus"
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 9}
).encode()
ANSWER = b'{"usage": {"prompt_tokens": 20, "completion_tokens": 5}}'
FULL_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED


class Broken(TextEma):
    """An estimator that raises an error when it learns, as if it had a bug."""

    def observe(
        self, model: str, category: str, features: Features, prompt_tokens: int
    ) -> Prediction:
        raise ZeroDivisionError(SECRET)


@dataclass
class Server:
    """A service, with the calls that the service deferred."""

    router: Router = field(default_factory=lambda: make_router(Config()))
    sample: float = 1.0
    loads: Callable[[], Mapping[str, PoolLoad]] = dict
    watchers: list[Any] = field(default_factory=list)
    tracer: Tracer | None = None
    deferred: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.service = ExtProcService(
            make_in_force(
                self.router,
                settings=ExchangeSettings(traced=self.tracer is not None),
                sampler=FeedbackSampler(self.sample, adaptive=False),
                loads=self.loads,
            ),
            self.metrics,
            decision_watchers=self.watchers,
            observation_watchers=self.watchers,
            tracer=self.tracer,
            defer=self.deferred.append,
        )

    def open(self) -> Call:
        call = self.service.open(PROCESS, {}, lambda messages, end=False: None)
        assert call is not None
        return call

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def headers(phase: str = "request_headers", **more: str) -> bytes:
    fields = {":path": "/v1/chat/completions", ":method": "POST"}
    if phase == "request_headers":
        fields["content-length"] = str(len(BODY))
    else:
        fields = {":status": "200", "content-type": "application/json"}
    fields |= {key.replace("_", "-"): value for key, value in more.items()}
    message = pb.ProcessingRequest()
    message.protocol_config.SetInParent()
    getattr(message, phase).headers.headers.extend(
        pb.HeaderValue(key=k, raw_value=v.encode("latin-1")) for k, v in fields.items()
    )
    return message.SerializeToString()


def body(phase: str = "request_body", data: bytes = BODY, end: bool = True) -> bytes:
    chunk = pb.HttpBody(body=data, end_of_stream=end)
    return pb.ProcessingRequest(**{phase: chunk}).SerializeToString()  # type: ignore[arg-type]


def replied(replies: tuple[Any, bool]) -> pb.ProcessingResponse:
    (message,), _ = replies
    return pb.ProcessingResponse.FromString(message)


def pool_of(replies: tuple[Any, bool]) -> str:
    common = replied(replies).request_body.response
    options = common.header_mutation.set_headers
    return {o.header.key: o.header.raw_value.decode() for o in options}["x-llm-pool"]


def test_only_process_is_served() -> None:
    service = Server().service

    for path in ("/envoy.service.ext_proc.v3.ExternalProcessor/Other", "/", ""):
        assert service.open(path, {}, lambda messages, end=False: None) is None


def test_a_request_is_routed_and_its_stream_ended() -> None:
    server = Server(sample=0.0)
    call = server.open()

    asked = call.receive(headers())
    decided = call.receive(body())

    assert not asked[1]
    assert replied(asked).mode_override.request_body_mode == pb.ProcessingMode.BUFFERED
    assert pool_of(decided) == "short"
    assert decided[1]
    assert server.metric(
        "extproc_decisions_total",
        pool="short",
        category="prose",
        reason="within_threshold",
    )


def test_a_response_is_learned_from_once_its_reply_is_on_its_way() -> None:
    server = Server()
    call = server.open()
    for message in (headers(), body(), headers("response_headers")):
        assert not call.receive(message)[1]

    replies, end = call.receive(body("response_body", ANSWER))

    assert end
    assert len(replies) == 1
    assert server.router.ratios.all() == {}
    (learn,) = server.deferred
    learn()
    assert list(server.router.ratios.all()) == ["prose"]
    assert server.metric("extproc_observations_total", result="learned") == 1


def test_streams_are_counted_while_open_and_by_the_state_they_ended_in() -> None:
    server = Server()
    call, other = server.open(), server.open()
    call.receive(headers())
    assert server.metric("extproc_streams_inflight") == 2

    call.closed(cancelled=True)
    other.closed(cancelled=False)

    assert server.metric("extproc_streams_inflight") == 0
    assert server.metric("extproc_exchanges_ended_total", state="request_body") == 1
    assert server.metric("extproc_exchanges_ended_total", state="request_headers") == 1


def test_envoy_ending_its_side_ends_the_stream() -> None:
    assert Server().open().half_closed() == ((), True)


@pytest.mark.parametrize("message", [b"", b"\xff", body("response_body"), body()])
def test_a_message_out_of_order_ends_the_stream_cleanly(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()

    assert server.open().receive(message) == ((), True)
    assert server.metric("extproc_protocol_errors_total") == 1
    assert [record.getMessage() for record in caplog.records] == ["protocol_error"]


def test_requests_without_a_decision_are_counted_by_the_reason() -> None:
    server = Server()
    for asked in (
        {"_path": "/v1/models"},
        {"_path": "/v1/tokenize"},
        {"_method": "GET"},
        {"_method": "DELETE"},
    ):
        message = headers(
            **{key.replace("_", ":"): value for key, value in asked.items()}
        )
        assert server.open().receive(message)[1]

    counted = {
        reason: server.metric("extproc_not_routed_total", reason=reason)
        for reason in ("method", "path", "unread", "no_body")
    }
    assert counted == {"method": 2, "path": 1, "unread": 1, "no_body": 0}


# Internal errors of the program.


def test_a_message_out_of_order_in_full_duplex_is_an_error() -> None:
    """After a clean end, the backend would get an empty body instead of the withheld
    one.
    """
    call = Server().open()
    first = pb.ProcessingRequest.FromString(headers())
    first.protocol_config.request_body_mode = FULL_DUPLEX
    call.receive(first.SerializeToString())
    call.receive(body(end=False))

    with pytest.raises(RpcError, match="INTERNAL"):
        call.receive(headers())


def fail(*args: object) -> Any:
    raise KeyError(SECRET)


def test_a_fault_in_deciding_is_a_decision_for_the_default_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(loads=fail)
    for _ in range(3):
        call = server.open()
        call.receive(headers())
        decided = call.receive(body())

        assert pool_of(decided) == "long"
        assert decided[1]

    assert server.metric("extproc_faults_total") == 3
    assert server.metric(
        "extproc_decisions_total", pool="long", category="unknown", reason="fault"
    )
    (record,) = caplog.records  # only the first error at a code location is logged
    assert record.levelno == logging.ERROR
    assert record.fields["error"] == "KeyError"  # type: ignore[attr-defined]
    assert "test_ext_proc.py" in record.fields["at"]  # type: ignore[attr-defined]
    assert SECRET not in str(record.__dict__)


def test_a_fault_is_counted_once_however_long_its_stream_goes_on() -> None:
    server = Server(loads=fail)
    call = server.open()
    head = pb.ProcessingRequest.FromString(headers())
    head.protocol_config.response_body_mode = FULL_DUPLEX
    call.receive(head.SerializeToString())
    assert pool_of(call.receive(body())) == "long"

    for phase in (headers("response_headers"), body("response_body", ANSWER)):
        assert replied(call.receive(phase))

    assert server.metric("extproc_faults_total") == 1


def test_a_fault_in_learning_is_counted_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router = make_router(Config())
    router.estimator = Bounded(Broken(), NoMargin())
    server = Server(router)
    call = server.open()
    for message in (headers(), body(), headers("response_headers")):
        call.receive(message)
    call.receive(body("response_body", ANSWER))

    server.deferred[0]()

    assert server.metric("extproc_faults_total") == 1
    assert SECRET not in caplog.text


def test_a_fault_of_a_watcher_costs_no_decision() -> None:
    @dataclass
    class Watcher:
        decided = observed = staticmethod(fail)

    server = Server(watchers=[Watcher()])
    call = server.open()
    call.receive(headers())

    assert pool_of(call.receive(body())) == "short"
    assert server.metric("extproc_faults_total") == 1


@dataclass
class Spans:
    """A tracer that stores all received spans."""

    broken: bool = False
    seen: list[tuple[Decided, Mapping[str, str], float]] = field(default_factory=list)

    def record(
        self, decided: Decided, metadata: Mapping[str, str], elapsed_s: float
    ) -> None:
        if self.broken:
            raise KeyError(SECRET)
        self.seen.append((decided, metadata, elapsed_s))


@pytest.mark.parametrize("broken", [False, True])
def test_a_decision_is_traced_once_and_a_fault_of_the_tracer_costs_none(
    broken: bool,
) -> None:
    tracer = Spans(broken)
    server = Server(tracer=tracer)
    call = server.open()
    for message in (headers(traceparent="from-the-client"), body()):
        replies = call.receive(message)
    assert pool_of(replies) == "short"
    call.receive(headers("response_headers"))

    assert server.metric("extproc_faults_total") == broken
    for decided, metadata, elapsed_s in tracer.seen:
        assert decided.head.headers["traceparent"] == "from-the-client"
        assert decided.head.headers[":path"] == "/v1/chat/completions"
        assert metadata == {}
        assert elapsed_s >= 0
    assert len(tracer.seen) == (not broken)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    messages=st.lists(
        st.binary(max_size=40)
        | st.sampled_from(
            [
                headers(),
                headers(content_encoding="gzip"),
                body(),
                body(data=b"\xff", end=False),
                headers("response_headers"),
                headers("response_headers", content_type="text/event-stream"),
                body("response_body", ANSWER),
                body("response_body", b"data: {}\n\n", False),
            ]
        ),
        max_size=6,
    )
)
def test_no_messages_raise_and_each_is_answered_or_ends_the_stream(
    messages: list[bytes],
) -> None:
    server = Server()
    call = server.open()
    for message in messages:
        replies, end = call.receive(message)
        assert end or len(replies) == 1
        if end:
            break
    call.closed(cancelled=False)

    assert server.metric("extproc_faults_total") == 0


# Logs.


def test_neither_bodies_nor_credentials_are_logged_or_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server()
    for encoding in ("", "gzip"):
        call = server.open()
        for message in (
            headers(authorization=f"Bearer {SECRET}", content_encoding=encoding),
            body(),
            headers("response_headers", set_cookie=SECRET),
            body("response_body", SECRET.encode()),
            body("response_body", SECRET.encode()),
            b"\xff" + SECRET.encode(),
        ):
            call.receive(message)
        call.closed(cancelled=False)
    for learn in server.deferred:
        learn()

    assert caplog.records
    assert SECRET not in str([record.__dict__ for record in caplog.records])
    assert SECRET.encode() not in generate_latest(server.metrics.registry)


def test_what_a_client_chooses_is_no_label() -> None:
    server = Server()
    for i in range(50):
        call = server.open()
        request = json.dumps(
            {"model": f"model-{i}", "messages": [{"content": "Hi"}]}
        ).encode()
        call.receive(headers(x_llm_category=f"mine-{i}", x_request_id=str(i)))
        call.receive(body(data=request))

    text = generate_latest(server.metrics.registry).decode()
    assert "model-" not in text
    assert "mine-" not in text
    assert (
        server.metric(
            "extproc_decisions_total",
            pool="short",
            category="prose",
            reason="within_threshold",
        )
        == 50
    )


def test_a_request_has_ended_when_its_response_has() -> None:
    server, landed = Server(), []
    server.service.in_flight = InFlight(landed.append)
    call = server.open()
    for message in (headers(), body(), headers("response_headers")):
        call.receive(message)
    assert len(server.service.in_flight) == 1
    call.closed(True)
    assert landed == ["short"]


def test_the_end_of_a_request_that_nobody_follows_is_not_known() -> None:
    server, landed = Server(sample=0.0), []
    server.service.in_flight = InFlight(landed.append)
    call = server.open()
    for message in (headers(), body()):
        call.receive(message)
    call.closed(False)
    assert (landed, len(server.service.in_flight)) == ([], 0)


class Unwritable(Router):
    """Decisions that cannot be encoded."""

    def route(self, *args: Any, **options: Any) -> Decision:
        return replace(super().route(*args, **options), category="\ud800")


def test_a_fault_in_writing_a_reply_loses_no_byte_in_full_duplex() -> None:
    old = make_router(Config())
    broken = Unwritable(old.policy, old.estimator, old.ratios)
    server = Server(broken, sample=0.0)
    call = server.open()
    head = pb.ProcessingRequest.FromString(headers())
    head.protocol_config.request_body_mode = FULL_DUPLEX
    call.receive(head.SerializeToString())

    replies, _ = call.receive(body())

    first, second = (pb.ProcessingResponse.FromString(reply) for reply in replies)
    assert first.WhichOneof("response") == "request_headers"
    streamed = second.request_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (BODY, True)
    assert server.metric("extproc_faults_total") == 1


def test_a_fault_in_writing_a_reply_leaves_the_request_to_envoy() -> None:
    old = make_router(Config())
    broken = Unwritable(old.policy, old.estimator, old.ratios)
    server = Server(broken, sample=0.0)
    call = server.open()
    call.receive(headers())

    assert call.receive(body()) == ((), True)
    assert server.metric("extproc_faults_total") == 1
