"""ext_proc's protobuf messages to events, and replies to messages.

The only module that names the protobuf types of the exchange.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

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
from extproc.routing.router import Decision
from extproc.wire import ext_proc_pb2 as pb

POOL_HEADER = "x-llm-pool"
BUDGET_HEADER = "x-llm-budget"
METADATA_NAMESPACE = "extproc.token_budget"

MAX_ECHO_BYTES = 64 * 1024
"""The largest ``StreamedBodyResponse`` that Envoy's documentation advises."""

_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class UnknownMessageError(Exception):
    """A message that ext_proc does not have, or that is not protobuf."""


def decode(data: bytes) -> Event:
    """Read one ``ProcessingRequest``.

    Raises:
        UnknownMessageError: not protobuf, or none of the six phases.
    """
    try:
        message = pb.ProcessingRequest.FromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise UnknownMessageError("not a ProcessingRequest") from error
    match message.WhichOneof("request"):
        case "request_headers":
            return _decode_request_headers(message)
        case "request_body":
            body = message.request_body
            return RequestBody(body.body, body.end_of_stream)
        case "response_headers":
            headers = message.response_headers
            return ResponseHeaders(_headers(headers), headers.end_of_stream)
        case "response_body":
            body = message.response_body
            return ResponseBody(body.body, body.end_of_stream)
        case "request_trailers":
            return RequestTrailers()
        case "response_trailers":
            return ResponseTrailers()
    raise UnknownMessageError("a ProcessingRequest of no known phase")


def _decode_request_headers(message: pb.ProcessingRequest) -> RequestHeaders:
    request_mode = response_mode = None
    if message.HasField("protocol_config"):
        request_mode = _body_mode(message.protocol_config.request_body_mode)
        response_mode = _body_mode(message.protocol_config.response_body_mode)
    headers = message.request_headers
    return RequestHeaders(
        _headers(headers), headers.end_of_stream, request_mode, response_mode
    )


_BODY_MODES = frozenset(BodyMode)


def _body_mode(number: int) -> BodyMode | None:
    # A number that is not in the enum comes as it is: a mode of a later Envoy.
    return BodyMode(number) if number in _BODY_MODES else None


def _headers(headers: pb.HttpHeaders) -> dict[str, str]:
    # Envoy sends raw_value since 1.28, value before; the first of a name wins, as a
    # second content-length or path is no client's honest doing.
    decoded: dict[str, str] = {}
    for header in headers.headers.headers:
        key = header.key
        if key not in decoded:
            decoded[key] = header.raw_value.decode("latin-1") or header.value
    return decoded


def encode(event: Event, reply: Reply) -> Sequence[bytes]:
    """Write a reply to an event: one message, or in full duplex none or several."""
    match reply:
        case Continue():
            return _CONTINUE[type(event)]
        case AskRequestBody():
            return _ASK_REQUEST_BODY
        case AskResponseBody():
            return _ASK_RESPONSE_BODY
        case Withhold():
            return ()
        case Route():
            return (_encode_route(event, reply),)
        case Release():
            return _encode_release(reply)
        case Rewrite():
            message = pb.ProcessingResponse()
            message.response_body.response.body_mutation.body = reply.body
            return (message.SerializeToString(),)
        case Echo():
            return _encode_echo(event, reply)


def _encode_route(event: Event, reply: Route) -> bytes:
    decision = reply.decision
    if reply.body is None:
        phase = _ON_HEADERS if isinstance(event, RequestHeaders) else _ON_BODY
        return _field(phase, _common(decision)) + _metadata(decision)
    message = pb.ProcessingResponse()
    common = message.request_body.response
    common.MergeFromString(_routed(decision))
    # Envoy leaves content-length as it was; a body that does not match is a 500.
    common.header_mutation.set_headers.append(
        _overwrite("content-length", str(len(reply.body)))
    )
    common.body_mutation.body = reply.body
    return message.SerializeToString() + _metadata(decision)


# A decision's reply is put together from pieces that are serialized once: protobuf's
# objects would take 30 us for these few bytes, a third of all that a request costs.
# The numbers below are field numbers of ext_proc.proto.

_ON_HEADERS = 1  # ProcessingResponse.request_headers
_ON_BODY = 3  # ProcessingResponse.request_body
_DYNAMIC_METADATA = 8


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _field(number: int, payload: bytes) -> bytes:
    """Write a length-delimited field; numbers up to 15, which all of ours are."""
    size = len(payload)
    length = bytes((size,)) if size < 0x80 else _varint(size)
    return bytes((number << 3 | 2,)) + length + payload


def _overwrite(key: str, value: str) -> pb.HeaderValueOption:
    header = pb.HeaderValue(key=key, raw_value=value.encode())
    return pb.HeaderValueOption(header=header, append_action=_OVERWRITE)


def _common(decision: Decision) -> bytes:
    return _field(1, _routed(decision))  # HeadersResponse and BodyResponse alike


def _routed(decision: Decision) -> bytes:
    """Write the CommonResponse: both headers, and the route chosen anew."""
    budget = str(decision.budget_tokens).encode()
    option = _field(1, _BUDGET_KEY + _field(3, budget)) + _OVERWRITE_ACTION
    mutation = _pool_option(decision.pool.name) + _field(1, option)
    return _field(2, mutation) + _CLEAR_ROUTE_CACHE


_BUDGET_KEY = pb.HeaderValue(key=BUDGET_HEADER).SerializeToString()
_OVERWRITE_ACTION = pb.HeaderValueOption(append_action=_OVERWRITE).SerializeToString()
_CLEAR_ROUTE_CACHE = pb.CommonResponse(clear_route_cache=True).SerializeToString()


@functools.cache
def _pool_option(pool: str) -> bytes:
    return _field(1, _overwrite(POOL_HEADER, pool).SerializeToString())


def _metadata(decision: Decision) -> bytes:
    """Write ``ProcessingResponse.dynamic_metadata``, a Struct in a Struct."""
    numbers = (
        decision.body_bytes,
        decision.prompt_tokens,
        decision.output_tokens,
        decision.budget_tokens,
    )
    fields = _metadata_texts(decision.pool.name, decision.category, decision.reason)
    for prefix, number in zip(_NUMBER_PREFIXES, numbers, strict=True):
        fields += prefix + _DOUBLE.pack(number)
    entry = _NAMESPACE_KEY + _field(2, _field(_STRUCT_VALUE, fields))
    return _field(_DYNAMIC_METADATA, _field(1, entry))


# google.protobuf.Struct: ``fields`` is a map, whose entries are messages of key 1 and
# value 2; a Value is a double (2), a string (3) or a Struct (5).
_STRUCT_VALUE = 5
_DOUBLE = struct.Struct("<d")
_NAMESPACE_KEY = _field(1, METADATA_NAMESPACE.encode())


def _entry(key: str, value: bytes) -> bytes:
    return _field(1, _field(1, key.encode()) + _field(2, value))


_NUMBER_PREFIXES = tuple(
    _entry(key, b"\x11" + _DOUBLE.pack(0))[: -_DOUBLE.size]
    for key in ("bytes", "prompt_tokens", "output_tokens", "budget_tokens")
)


@functools.cache
def _metadata_texts(pool: str, category: str, reason: str) -> bytes:
    texts = {"pool": pool, "category": category, "reason": reason}
    return b"".join(
        [_entry(key, _field(3, text.encode())) for key, text in texts.items()]
    )


def _encode_release(reply: Release) -> list[bytes]:
    head = _CONTINUE[RequestHeaders][0]
    if reply.decision is not None:
        head = _field(_ON_HEADERS, _common(reply.decision)) + _metadata(reply.decision)
    messages = [head, *_chunks("request_body", reply.body, reply.end_of_stream)]
    if reply.trailers:
        messages += _CONTINUE[RequestTrailers]
    return messages


def _encode_echo(event: Event, reply: Echo) -> list[bytes]:
    phase = "response_body" if isinstance(event, ResponseBody) else "request_body"
    return _chunks(phase, reply.body, reply.end_of_stream)


def _chunks(phase: str, body: bytes, end_of_stream: bool) -> list[bytes]:
    messages = []
    for start in range(0, len(body), MAX_ECHO_BYTES) or (0,):
        chunk = body[start : start + MAX_ECHO_BYTES]
        message = pb.ProcessingResponse()
        streamed = getattr(message, phase).response.body_mutation.streamed_response
        streamed.body = chunk
        streamed.end_of_stream = end_of_stream and start + len(chunk) == len(body)
        messages.append(message.SerializeToString())
    return messages


def _constant(phase: str, **override: Any) -> tuple[bytes]:
    message = pb.ProcessingResponse()
    # Only touching a submessage would leave the oneof unset: a spurious reply, and a
    # 500 for the client.
    getattr(message, phase).SetInParent()
    if override:
        message.mode_override.CopyFrom(pb.ProcessingMode(**override))
    return (message.SerializeToString(),)


_CONTINUE: dict[type[Event], tuple[bytes]] = {
    RequestHeaders: _constant("request_headers"),
    RequestBody: _constant("request_body"),
    RequestTrailers: _constant("request_trailers"),
    ResponseHeaders: _constant("response_headers"),
    ResponseBody: _constant("response_body"),
    ResponseTrailers: _constant("response_trailers"),
}
# The response's headers are asked for in every case: whether the exchange is chosen
# for feedback is known only with the body, whose reply cannot change the mode; for
# those that are not chosen the stream is ended.
_ASK_REQUEST_BODY = _constant(
    "request_headers",
    request_body_mode=BodyMode.BUFFERED,
    response_header_mode=pb.ProcessingMode.SEND,
)
_ASK_RESPONSE_BODY = _constant(
    "response_headers",
    request_body_mode=BodyMode.BUFFERED,
    response_header_mode=pb.ProcessingMode.SEND,
    response_body_mode=BodyMode.STREAMED,
)
