"""Shadow mode on the wire: replies have the decision's metadata, but keep the route."""

from typing import Any

import pytest
from msgspec.structs import replace

from extproc.exchange.events import (
    Event,
    Release,
    Reply,
    RequestBody,
    RequestHeaders,
    Route,
)
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision
from extproc.server.services.codec import METADATA_NAMESPACE, encode
from extproc.wire import ext_proc_pb2 as pb

DECISION = Decision(
    Pool("short", 8192, 8192),
    Reason.WITHIN_THRESHOLD,
    category="prose",
    prompt_tokens=70,
    output_tokens=100,
)


@pytest.mark.parametrize(
    ("event", "reply", "phase"),
    [
        (RequestHeaders({}), Route(DECISION, shadow=True), "request_headers"),
        (RequestBody(b"x", True), Route(DECISION, shadow=True), "request_body"),
        (
            RequestBody(b"x", True),
            Release(DECISION, b"x", True, shadow=True),
            "request_headers",
        ),
    ],
    ids=["headers", "body", "full duplex"],
)
def test_only_metadata_is_set(event: Event, reply: Reply, phase: str) -> None:
    message = pb.ProcessingResponse.FromString(encode(event, reply)[0])
    assert message.WhichOneof("response") == phase
    assert not getattr(message, phase).HasField("response")
    metadata: Any = message.dynamic_metadata[METADATA_NAMESPACE]
    assert metadata["pool"] == "short"
    assert metadata["budget_tokens"] == 170


def test_a_configured_model_is_named_beside_its_pool() -> None:
    decision = replace(DECISION, pool=Pool("short", 8192, 8192, "llama"))
    (data,) = encode(RequestBody(b"x", True), Route(decision))
    message = pb.ProcessingResponse.FromString(data)
    options = message.request_body.response.header_mutation.set_headers
    assert {o.header.key: o.header.raw_value for o in options} == {
        "x-llm-pool": b"short",
        "x-llm-model": b"llama",
        "x-llm-budget": b"170",
    }
    metadata: Any = message.dynamic_metadata[METADATA_NAMESPACE]
    assert metadata["model"] == "llama"
    without = pb.ProcessingResponse.FromString(
        encode(RequestBody(b"x", True), Route(DECISION))[0]
    )
    said: Any = without.dynamic_metadata[METADATA_NAMESPACE]
    assert "model" not in said


def test_a_body_that_asks_for_usage_is_sent_all_the_same() -> None:
    reply = Route(DECISION, b"another", shadow=True)
    (data,) = encode(RequestBody(b"x", True), reply)
    common = pb.ProcessingResponse.FromString(data).request_body.response
    assert common.body_mutation.body == b"another"
    assert not common.clear_route_cache
    (option,) = common.header_mutation.set_headers
    assert (option.header.key, option.header.raw_value) == ("content-length", b"7")
