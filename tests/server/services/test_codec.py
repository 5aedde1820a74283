"""Messages are compared with upstream's classes, in another process."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from extproc.exchange.events import (
    AskRequestBody,
    AskResponseBody,
    BodyMode,
    Continue,
    Echo,
    Event,
    Release,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Rewrite,
    Route,
    Withhold,
)
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision
from extproc.server.services.codec import (
    MAX_ECHO_BYTES,
    METADATA_NAMESPACE,
    UnknownMessageError,
    decode,
    decode_any,
    encode,
)
from extproc.wire import ext_proc_pb2 as pb

DECISION = Decision(
    Pool("short", 8192, 8192),
    Reason.WITHIN_THRESHOLD,
    category="prose",
    body_bytes=300,
    prompt_tokens=70,
    bound_tokens=90,
    output_tokens=1 << 31,
)
NOTHING = Decision(Pool("x" * 63, 1, 1), Reason.LENGTH_UNKNOWN)
MAY_BE_CUT = Decision(
    Pool("short", 8192, 8192),
    Reason.WITHIN_THRESHOLD,
    limit_tokens=32_000,
    retry_cut=True,
)
REQUEST_HEADERS = RequestHeaders({})
REQUEST_BODY = RequestBody(b"body", True)
RESPONSE_BODY = ResponseBody(b"body", True)
BIG = bytes(range(256)) * 600

REPLIES: dict[str, tuple[Event, Reply]] = {
    "continue request headers": (REQUEST_HEADERS, Continue()),
    "continue request body": (REQUEST_BODY, Continue()),
    "continue request trailers": (RequestTrailers(), Continue()),
    "continue response headers": (ResponseHeaders({}), Continue()),
    "continue response body": (RESPONSE_BODY, Continue()),
    "continue response trailers": (ResponseTrailers(), Continue()),
    "ask request body": (REQUEST_HEADERS, AskRequestBody()),
    "ask response body": (ResponseHeaders({}), AskResponseBody()),
    "withhold": (REQUEST_HEADERS, Withhold()),
    "route on headers": (REQUEST_HEADERS, Route(NOTHING)),
    "route on body": (REQUEST_BODY, Route(DECISION)),
    "route with a body": (REQUEST_BODY, Route(DECISION, b"another body")),
    "route with a retry": (REQUEST_BODY, Route(MAY_BE_CUT)),
    "route with a retry and a token": (
        REQUEST_HEADERS,
        Route(MAY_BE_CUT, decision_token=b"token"),
    ),
    "route with a retry in shadow": (REQUEST_BODY, Route(MAY_BE_CUT, shadow=True)),
    "release": (REQUEST_BODY, Release(DECISION, BIG, True)),
    "release more to come": (REQUEST_BODY, Release(DECISION, b"part", False)),
    "release nothing": (REQUEST_BODY, Release(NOTHING, b"", True)),
    "release before trailers": (
        RequestTrailers(),
        Release(DECISION, b"body", False, trailers=True),
    ),
    "release undecided": (REQUEST_BODY, Release(None, b"body", True)),
    "rewrite": (RESPONSE_BODY, Rewrite(b"less")),
    "rewrite to nothing": (RESPONSE_BODY, Rewrite(b"")),
    "echo request": (REQUEST_BODY, Echo(BIG, True)),
    "echo request more to come": (REQUEST_BODY, Echo(b"part", False)),
    "echo response": (RESPONSE_BODY, Echo(b"answer", True)),
    "echo nothing": (RESPONSE_BODY, Echo(b"", True)),
}
HEADERS = [
    {"key": ":path", "raw_value": base64.b64encode(b"/v1").decode()},
    {"key": "x-odd", "raw_value": base64.b64encode(b"\xff\xfe").decode()},
    {"key": "x-old", "value": "text"},
    {"key": "x-twice", "raw_value": base64.b64encode(b"1").decode()},
    {"key": "x-twice", "raw_value": base64.b64encode(b"2").decode()},
]
DECODED = {":path": "/v1", "x-odd": "\xff\xfe", "x-old": "text", "x-twice": "1"}
MODES = {
    "protocol_config": {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "response_body_mode": "STREAMED",
    }
}
REQUESTS: dict[str, tuple[dict[str, Any], Event]] = {
    "request headers": (
        {"request_headers": {"headers": {"headers": HEADERS}}},
        RequestHeaders(DECODED),
    ),
    "request headers, all of it": (
        {"request_headers": {"end_of_stream": True}},
        RequestHeaders({}, True),
    ),
    "request headers with modes": (
        {"request_headers": {}, **MODES},
        RequestHeaders({}, False, BodyMode.FULL_DUPLEX_STREAMED, BodyMode.STREAMED),
    ),
    "request headers with default modes": (
        {"request_headers": {}, "protocol_config": {}},
        RequestHeaders({}, False, BodyMode.NONE, BodyMode.NONE),
    ),
    "request headers with a mode that we do not speak": (
        {"request_headers": {}, "protocol_config": {"request_body_mode": "GRPC"}},
        RequestHeaders({}, False, None, BodyMode.NONE),
    ),
    "request headers with attributes and metadata": (
        {
            "request_headers": {},
            "attributes": {"envoy.filters.http.ext_proc": {"request.id": "7"}},
            "metadata_context": {},
        },
        RequestHeaders({}),
    ),
    "request body": (
        {"request_body": {"body": "Ym9keQ==", "end_of_stream": True}},
        RequestBody(b"body", True),
    ),
    "empty request body": ({"request_body": {}}, RequestBody(b"")),
    "request trailers": ({"request_trailers": {}}, RequestTrailers()),
    "response headers": (
        {"response_headers": {"headers": {"headers": HEADERS}, "end_of_stream": True}},
        ResponseHeaders(DECODED, True),
    ),
    "response body": ({"response_body": {"body": "Ym9keQ=="}}, ResponseBody(b"body")),
    "response trailers": ({"response_trailers": {}}, ResponseTrailers()),
}


@pytest.fixture(scope="module")
def upstream() -> dict[str, Any]:
    """Return replies parsed by upstream's classes, and requests encoded by them."""
    encoded = {name: encode(*case) for name, case in REPLIES.items()}
    asked = {
        "responses": [
            base64.b64encode(m).decode() for all_ in encoded.values() for m in all_
        ],
        "requests": [document for document, _ in REQUESTS.values()],
    }
    script = Path(__file__).parents[2] / "upstream.py"
    answer = json.loads(
        subprocess.run(
            [sys.executable, script],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
    )
    read = iter(answer["responses"])
    return {
        **{name: [next(read) for _ in all_] for name, all_ in encoded.items()},
        "requests": dict(zip(REQUESTS, answer["requests"], strict=True)),
    }


@pytest.mark.parametrize("name", REPLIES)
def test_every_message_answers_a_phase_in_known_fields(
    name: str, upstream: dict[str, Any]
) -> None:
    for message in upstream[name]:
        assert message["response"] is not None
        assert not message["unknown"]


@pytest.mark.parametrize("name", [n for n in REPLIES if n.startswith("continue ")])
def test_going_on_changes_nothing(name: str, upstream: dict[str, Any]) -> None:
    phase = name.removeprefix("continue ").replace(" ", "_")

    assert upstream[name] == [{phase: {}, "response": phase, "unknown": False}]


def test_asking_for_the_request_body(upstream: dict[str, Any]) -> None:
    (message,) = upstream["ask request body"]

    assert message["response"] == "request_headers"
    assert message["mode_override"] == {
        "request_body_mode": "BUFFERED",
        "response_header_mode": "SEND",
    }


def test_asking_for_the_response_body(upstream: dict[str, Any]) -> None:
    (message,) = upstream["ask response body"]

    assert message["response"] == "response_headers"
    assert message["mode_override"]["response_body_mode"] == "STREAMED"


def test_withholding_is_no_message(upstream: dict[str, Any]) -> None:
    assert upstream["withhold"] == []


def header_mutation(common: dict[str, Any]) -> dict[str, str]:
    options = common["header_mutation"]["set_headers"]
    assert {o["append_action"] for o in options} == {"OVERWRITE_IF_EXISTS_OR_ADD"}
    return {
        o["header"]["key"]: base64.b64decode(o["header"]["raw_value"]).decode()
        for o in options
    }


@pytest.mark.parametrize(
    ("name", "phase", "decision"),
    [
        ("route on headers", "request_headers", NOTHING),
        ("route on body", "request_body", DECISION),
        ("route with a body", "request_body", DECISION),
        ("route with a retry", "request_body", MAY_BE_CUT),
        ("release", "request_headers", DECISION),
        ("release nothing", "request_headers", NOTHING),
        ("release before trailers", "request_headers", DECISION),
    ],
)
def test_a_decision_sets_headers_metadata_and_the_route(
    name: str, phase: str, decision: Decision, upstream: dict[str, Any]
) -> None:
    message = upstream[name][0]
    common = message[phase]["response"]

    assert message["response"] == phase
    assert common["clear_route_cache"] is True
    headers = header_mutation(common)
    assert headers["x-llm-pool"] == decision.pool.name
    assert headers["x-llm-budget"] == str(decision.budget_tokens)
    assert message["dynamic_metadata"] == {
        "extproc.token_budget": {
            "pool": decision.pool.name,
            "category": decision.category,
            "reason": decision.reason,
            "bytes": decision.body_bytes,
            "prompt_tokens": decision.prompt_tokens,
            "output_tokens": decision.output_tokens,
            "budget_tokens": decision.budget_tokens,
        }
    }


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("route with a retry", "request_body"),
        ("route with a retry and a token", "request_headers"),
    ],
)
def test_an_answer_that_is_asked_for_again_if_cut(
    name: str, phase: str, upstream: dict[str, Any]
) -> None:
    (message,) = upstream[name]
    headers = header_mutation(message[phase]["response"])
    assert headers["x-llm-retry-cut"] == "8192 32000"
    assert set(headers) == {"x-llm-pool", "x-llm-budget", "x-llm-retry-cut"}


def test_in_shadow_nothing_is_asked_for_again(upstream: dict[str, Any]) -> None:
    (message,) = upstream["route with a retry in shadow"]
    assert "header_mutation" not in message["request_body"].get("response", {})


def test_a_new_body_comes_with_its_length(upstream: dict[str, Any]) -> None:
    (message,) = upstream["route with a body"]
    common = message["request_body"]["response"]

    assert base64.b64decode(common["body_mutation"]["body"]) == b"another body"
    assert header_mutation(common)["content-length"] == "12"


def test_a_rewritten_chunk(upstream: dict[str, Any]) -> None:
    for name, body in (("rewrite", b"less"), ("rewrite to nothing", b"")):
        (message,) = upstream[name]
        mutation = message["response_body"]["response"]["body_mutation"]
        assert base64.b64decode(mutation["body"]) == body


@pytest.mark.parametrize(
    ("name", "phase", "body", "end", "before", "after"),
    [
        ("release", "request_body", BIG, True, 1, 0),
        ("release more to come", "request_body", b"part", False, 1, 0),
        ("release nothing", "request_body", b"", True, 1, 0),
        ("release before trailers", "request_body", b"body", False, 1, 1),
        ("release undecided", "request_body", b"body", True, 1, 0),
        ("echo request", "request_body", BIG, True, 0, 0),
        ("echo request more to come", "request_body", b"part", False, 0, 0),
        ("echo response", "response_body", b"answer", True, 0, 0),
        ("echo nothing", "response_body", b"", True, 0, 0),
    ],
)
def test_a_body_is_echoed_in_chunks(
    name: str,
    phase: str,
    body: bytes,
    end: bool,
    before: int,
    after: int,
    upstream: dict[str, Any],
) -> None:
    messages = upstream[name]
    chunks = messages[before : len(messages) - after]
    streamed = [
        m[phase]["response"]["body_mutation"]["streamed_response"] for m in chunks
    ]
    parts = [base64.b64decode(s.get("body", "")) for s in streamed]

    assert b"".join(parts) == body
    assert max(map(len, parts)) <= MAX_ECHO_BYTES
    assert [s.get("end_of_stream", False) for s in streamed] == [
        *[False] * (len(parts) - 1),
        end,
    ]
    if after:
        assert messages[-1]["response"] == "request_trailers"


@pytest.mark.parametrize("name", REQUESTS)
def test_upstreams_requests_are_read(name: str, upstream: dict[str, Any]) -> None:
    data = base64.b64decode(upstream["requests"][name])

    assert decode_any(data) == REQUESTS[name][1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff",
        b"\x12\x05ab",
        pb.ProcessingRequest(observability_mode=True).SerializeToString(),
        b"\x52\x00",
    ],
)
def test_what_is_no_request_is_told(data: bytes) -> None:
    with pytest.raises(UnknownMessageError):
        decode(data, {})


@pytest.mark.parametrize("number", [-1, 5, 6, 1 << 30])
def test_a_body_mode_of_a_later_envoy_is_none(number: int) -> None:
    message = pb.ProcessingRequest(
        protocol_config=pb.ProtocolConfiguration(request_body_mode=number)  # type: ignore[arg-type]
    )
    message.request_headers.SetInParent()

    event = decode_any(message.SerializeToString())

    assert event == RequestHeaders({}, False, None, BodyMode.NONE)


def test_a_decision_may_come_with_the_trailers() -> None:
    """The reply has only metadata, because a reply to trailers cannot set headers."""
    decision = Decision(Pool("short", 8192, 8192), Reason.WITHIN_THRESHOLD)
    (message,) = encode(RequestTrailers(), Route(decision, shadow=True))
    reply = pb.ProcessingResponse.FromString(message)
    assert reply.WhichOneof("response") == "request_trailers"
    metadata = reply.dynamic_metadata.fields[METADATA_NAMESPACE].struct_value
    assert metadata.fields["pool"].string_value == "short"
