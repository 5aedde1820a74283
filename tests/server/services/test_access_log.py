"""Entries of Envoy's access log: what the router learns, and what they cannot change."""

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.address import Address
from extproc.config import Config, FeedbackConfig, PoolConfig
from extproc.exchange.decision_token import write_decision_token
from extproc.exchange.events import Observation, RequestBody, Route, Serving
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.policy import Reason
from extproc.routing.request import MAX_MODEL_CHARS, Prompt, Request
from extproc.routing.router import Decision, Outcome
from extproc.rpc.call import RpcError
from extproc.server.build import build_router, build_sampler
from extproc.server.observe.metrics import NO_CLUSTER, OTHER_CLUSTER, Metrics
from extproc.server.services.access_log import (
    MAX_TOKEN_CHARS,
    STREAM,
    AccessLog,
    Entry,
    WithAccessLog,
    read_entry,
    read_token,
)
from extproc.server.services.codec import TOKEN_KEY, TOKEN_NAMESPACE, encode
from extproc.server.services.ext_proc import PROCESS, ExtProcService
from extproc.server.services.in_flight import InFlight
from extproc.server.transport.grpcio import GrpcioServer
from extproc.server.transport.native import NativeServer
from extproc.wire import access_log_pb2 as pb
from extproc.wire import ext_proc_pb2

from ..in_force import make_in_force

POOLS = (PoolConfig("short", 1000), PoolConfig("long", 8000))
TEXT = b"Some words to learn from, again and again. " * 10


def make_router() -> Any:
    return build_router(Config(pools=POOLS))


def decide(**fields: Any) -> Decision:
    request = Request(Prompt(TEXT), len(TEXT) + 60, **fields)
    decision: Decision = make_router().route(request)
    return decision


def token_of(decision: Decision) -> str:
    return base64.b64encode(write_decision_token(decision)).decode()


def entry(
    decision_token: str | None = None, status: int = 200, **usage: float
) -> pb.HTTPAccessLogEntry:
    made = pb.HTTPAccessLogEntry()
    made.response.response_code.value = status
    common = made.common_properties
    common.upstream_cluster = "vllm_short"
    common.upstream_request_attempt_count = 1
    common.time_to_first_upstream_rx_byte.FromMilliseconds(250)
    metadata = common.metadata.filter_metadata
    metadata["other.filter"].fields["key"].string_value = "value"
    if decision_token is not None:
        metadata[TOKEN_NAMESPACE].fields[TOKEN_KEY].string_value = decision_token
    for name, count in usage.items():
        metadata["llm.usage"].fields[name].number_value = count
    return made


def read(made: pb.HTTPAccessLogEntry) -> Observation | Entry:
    return read_entry(made, read_token(made), make_router())


def outcome_of(made: pb.HTTPAccessLogEntry) -> Outcome:
    found = read(made)
    assert isinstance(found, Observation)
    return found.outcome


def test_an_entry_is_a_decision_and_its_outcome() -> None:
    decision = decide(model="m", max_tokens=50)
    found = read(entry(token_of(decision), prompt_tokens=101, completion_tokens=7))
    assert isinstance(found, Observation)
    assert found.decision.prompt_tokens == decision.prompt_tokens
    assert found.decision.features is not None
    assert found.decision.features.text_bytes == len(TEXT)
    assert found.outcome == Outcome(200, 101, 7)
    assert found.serving == Serving("vllm_short", 0.25)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3}, (12, 3)),
        (
            {
                "input_tokens": 12,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 2,
            },
            (19, None),
        ),
        ({}, (None, None)),
        ({"prompt_tokens": 1.5}, (None, None)),
        ({"prompt_tokens": -1}, (None, None)),
        ({"prompt_tokens": math.nan}, (None, None)),
        ({"prompt_tokens": math.inf}, (None, None)),
        ({"prompt_tokens": 2.0**31}, (None, None)),
    ],
)
def test_counts_in_either_vocabulary(
    usage: dict[str, Any], counted: tuple[int | None, int | None]
) -> None:
    outcome = outcome_of(entry(token_of(decide()), **usage))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == counted


@pytest.mark.parametrize(
    ("max_tokens", "completion", "attempts", "truncated"),
    [
        (50, 50, 1, True),
        (50, 49, 1, False),
        (None, 900, 1, True),  # with 100 prompt tokens, the answer fills the window
        (None, 899, 1, False),
        (None, 900, 2, False),  # the second attempt uses the larger window
        (None, 7900, 2, True),
    ],
)
def test_an_output_that_ended_at_a_limit_was_cut(
    max_tokens: int | None, completion: int, attempts: int, truncated: bool
) -> None:
    decision = decide(max_tokens=max_tokens)
    made = entry(token_of(decision), prompt_tokens=100, completion_tokens=completion)
    made.common_properties.upstream_request_attempt_count = attempts
    assert decision.pool.name == "short"
    assert outcome_of(made).truncated is truncated


def test_an_answer_of_envoys_own_has_neither_cluster_nor_first_byte() -> None:
    made = entry(token_of(decide()), status=503)
    made.common_properties.ClearField("time_to_first_upstream_rx_byte")
    made.common_properties.ClearField("upstream_cluster")
    made.common_properties.upstream_request_attempt_count = 0
    found = read(made)
    assert isinstance(found, Observation)
    assert found.serving == Serving("", None)
    assert found.outcome == Outcome(503, attempts=1)


def test_what_no_decision_belongs_to_is_unrelated() -> None:
    assert read(entry()) is Entry.UNRELATED
    assert read(entry("")) is Entry.UNRELATED


def test_a_response_under_way_is_left_for_later() -> None:
    made = entry(token_of(decide()), prompt_tokens=5)
    made.common_properties.intermediate_log_entry = True
    assert read(made) is Entry.INTERMEDIATE


@pytest.mark.parametrize(
    "decision_token",
    [
        "not base64!",
        "Zm9yZWlnbg==",
        token_of(decide())[:-8],
        token_of(decide()) + "A" * MAX_TOKEN_CHARS,
        "é",
    ],
)
def test_a_decision_token_that_is_not_ours_is_refused(decision_token: str) -> None:
    assert read(entry(decision_token)) is Entry.REFUSED


def test_the_largest_receipt_is_within_the_limit() -> None:
    everything = Prompt(bytes(range(256)) * 64, tools_text=bytes(range(255, -1, -1)))
    request = Request(everything, 99999, model="\U0001f600" * MAX_MODEL_CHARS)
    decision_token = token_of(make_router().route(request))
    assert len(decision_token) < MAX_TOKEN_CHARS
    assert isinstance(read(entry(decision_token)), Observation)


class Server:
    """A service with its access log, and the calls that the service deferred."""

    def __init__(self) -> None:
        self.router = make_router()
        self.metrics = Metrics()
        self.deferred: list[Callable[[], None]] = []
        self.service = ExtProcService(
            make_in_force(
                self.router,
                settings=ExchangeSettings(decision_tokens=True),
                sampler=FeedbackSampler(0.0, adaptive=False),
            ),
            self.metrics,
            defer=self.deferred.append,
        )
        self.both = WithAccessLog(self.service, AccessLog(self.service))

    def open(self, path: str = STREAM) -> Any:
        return self.both.open(path, {}, lambda messages, end=False: None)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def batch(*entries: pb.HTTPAccessLogEntry) -> bytes:
    message = pb.StreamAccessLogsMessage()
    message.http_logs.log_entry.extend(entries)
    serialized: bytes = message.SerializeToString()
    return serialized


def test_a_batch_is_learned_from_after_it_was_taken() -> None:
    server = Server()
    good = entry(token_of(decide()), prompt_tokens=110, completion_tokens=4)
    call = server.open()
    assert call.receive(batch(good, entry(), entry("odd"), good)) == ((), False)
    assert server.router.ratios.all() == {}
    assert len(server.deferred) == 2
    for learn in server.deferred:
        learn()
    assert server.router.ratios.all() != {}
    for result, count in {"observed": 2, "unrelated": 1, "refused": 1}.items():
        name = "extproc_access_log_entries_total"
        assert server.value(name, result=result) == count
    assert server.value("extproc_observations_total", result="learned") == 2
    labels = {"pool": "short", "cluster": "vllm_short"}
    assert server.value("extproc_served_total", **labels) == 2
    bucket = {"pool": "short", "le": "0.25"}
    assert server.value("extproc_first_byte_seconds_bucket", **bucket) == 2


def test_an_entry_says_that_its_request_has_ended() -> None:
    server = Server()
    landed: list[str] = []
    server.service.in_flight = InFlight(landed.append)
    ext_proc = server.open(PROCESS)
    head = ext_proc_pb2.ProcessingRequest()
    for key, value in {
        ":path": "/v1/completions",
        ":method": "POST",
        "content-length": "99",
    }.items():
        head.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    ext_proc.receive(head.SerializeToString())
    body = ext_proc_pb2.ProcessingRequest()
    body.request_body.body = b'{"model": "m", "prompt": "Hello"}'
    body.request_body.end_of_stream = True
    (reply,), _ = ext_proc.receive(body.SerializeToString())
    ext_proc.closed(False)
    assert len(server.service.in_flight) == 1

    metadata = ext_proc_pb2.ProcessingResponse.FromString(reply).dynamic_metadata
    decision_token = metadata.fields[TOKEN_NAMESPACE].struct_value.fields[TOKEN_KEY]
    made = entry(decision_token.string_value, status=503)
    server.open().receive(batch(entry("odd"), entry(), made, made))
    assert (landed, len(server.service.in_flight)) == (["short"], 0)


@given(st.binary(max_size=200))
def test_foreign_bytes_end_their_own_stream_only(data: bytes) -> None:
    server = Server()
    with contextlib.suppress(RpcError):
        assert server.open().receive(data) == ((), False)
    assert server.router.ratios.all() == {}


def test_clusters_are_told_apart_up_to_a_number() -> None:
    server = Server()
    names = ["", *(f"cluster-{number}" for number in range(100))]
    for name in names:
        made = entry(token_of(decide()), prompt_tokens=110)
        made.common_properties.upstream_cluster = name
        server.open().receive(batch(made))
    for learn in server.deferred:
        learn()
    clusters = {cluster for _, cluster in server.metrics.served.counts}
    assert len(clusters) == 33
    assert {NO_CLUSTER, OTHER_CLUSTER, "cluster-0"} <= clusters
    assert sum(server.metrics.served.counts.values()) == len(names)


def test_the_end_is_thanked_for_and_other_methods_pass() -> None:
    server = Server()
    assert server.open().half_closed() == ((b"",), True)
    assert server.open().drain() == ((b"",), True)
    assert server.open("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
    assert server.open("/other") is None


def test_a_replys_receipt_is_more_metadata() -> None:
    decision = decide()
    event = RequestBody(b"", True)
    (plain,) = encode(event, Route(decision))
    (more,) = encode(
        event, Route(decision, decision_token=write_decision_token(decision))
    )
    assert more.startswith(plain)
    read_back = ext_proc_pb2.ProcessingResponse.FromString(more)
    fields = read_back.dynamic_metadata.fields
    assert set(fields) == {"extproc.token_budget", TOKEN_NAMESPACE}
    decision_token = fields[TOKEN_NAMESPACE].struct_value.fields[TOKEN_KEY].string_value
    assert decision_token == token_of(decision)


def test_with_the_access_log_nothing_is_sampled_unless_asked_for() -> None:
    learnable = Decision(make_router().policy.default, Reason.WITHIN_THRESHOLD)
    for feedback, wanted in [
        (FeedbackConfig(access_log=True), False),
        (FeedbackConfig(access_log=True, sample="all"), True),
        (FeedbackConfig(sample="all"), True),
    ]:
        assert build_sampler(feedback, make_router()).wants(learnable) is wanted


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_a_drain_ends_a_stream_that_envoy_holds_open(
    transport: str, tmp_path: Path
) -> None:
    asyncio.run(asyncio.wait_for(drain_with_an_open_stream(transport, tmp_path), 20))


def until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.005)


async def drain_with_an_open_stream(transport: str, directory: Path) -> None:
    server = Server()
    address = Address(path=str(directory / "grpc.sock"))
    serving: Any
    if transport == "native":
        serving = NativeServer(server.both, address)
    else:
        serving = GrpcioServer(server.both, address)
    await serving.start()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        call = channel.stream_unary(STREAM)()
        await call.write(batch(entry(token_of(decide()), prompt_tokens=110)))
        await asyncio.to_thread(until, lambda: server.deferred)
        # The drain may take far longer than the test, so the stream must not wait for
        # it.
        await serving.drain(3600)
        assert await call == b""
        assert await call.code() is grpc.StatusCode.OK
