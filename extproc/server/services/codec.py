"""Decodes ext_proc's protobuf messages into events, and encodes replies.

This is the only module that uses the protobuf types of the exchange.
"""

from __future__ import annotations

import base64
import functools
import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from extproc.routing.decision import Decision
from extproc.server.services.fast_decode import Wanted, fast_decode
from extproc.wire import ext_proc_pb2 as pb

POOL_HEADER = "x-llm-pool"
BUDGET_HEADER = "x-llm-budget"
MODEL_HEADER = "x-llm-model"
"""Header with the name of the base model, if models are configured."""
RETRY_CUT_HEADER = "x-llm-retry-cut"
"""Header with the pool's window and the client's limit (0 if there is none): ``8192
32000``."""
METADATA_NAMESPACE = "extproc.token_budget"
TOKEN_NAMESPACE = "extproc.receipt"
"""Metadata namespace for the decision token. It is separate from the namespace with the
numbers, which people read in logs."""
TOKEN_KEY = "decision"

MAX_ECHO_BYTES = 64 * 1024
"""Largest ``StreamedBodyResponse`` in bytes that Envoy's documentation recommends."""

PHASES: dict[type[Event], str] = {
    RequestHeaders: "request_headers",
    RequestBody: "request_body",
    RequestTrailers: "request_trailers",
    ResponseHeaders: "response_headers",
    ResponseBody: "response_body",
    ResponseTrailers: "response_trailers",
}
"""The field of an event in ``ProcessingRequest``, and of its reply in
``ProcessingResponse``."""

_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class UnknownMessageError(Exception):
    """The message is not protobuf or not part of ext_proc."""


def decode(data: bytes, wanted: Wanted) -> Event:
    """Decode a ``ProcessingRequest``, with the fast decoders if possible.

    Args:
        data: the serialized message.
        wanted: headers to decode. For unusual messages all headers are decoded.

    Raises:
        UnknownMessageError: the message is not protobuf, or none of the six phases.
    """
    return fast_decode(data, wanted) or decode_any(data)


def decode_any(data: bytes) -> Event:
    """Decode any ``ProcessingRequest``; the reference for the fast decoders.

    Raises:
        UnknownMessageError: the message is not protobuf, or none of the six phases.
    """
    try:
        message = pb.ProcessingRequest.FromString(data)
    except Exception as error:  # protobuf's DecodeError moves between modules
        raise UnknownMessageError("not a ProcessingRequest") from error
    phase = message.WhichOneof("request")
    if phase is None:
        raise UnknownMessageError("a ProcessingRequest with an unknown phase")
    return _DECODERS[phase](message)


def _decode_request_headers(message: pb.ProcessingRequest) -> RequestHeaders:
    request_mode = response_mode = None
    if message.HasField("protocol_config"):
        request_mode = _body_mode(message.protocol_config.request_body_mode)
        response_mode = _body_mode(message.protocol_config.response_body_mode)
    headers = message.request_headers
    return RequestHeaders(
        _headers(headers), headers.end_of_stream, request_mode, response_mode
    )


def _decode_request_body(message: pb.ProcessingRequest) -> RequestBody:
    return RequestBody(message.request_body.body, message.request_body.end_of_stream)


def _decode_response_headers(message: pb.ProcessingRequest) -> ResponseHeaders:
    headers = message.response_headers
    return ResponseHeaders(_headers(headers), headers.end_of_stream)


def _decode_response_body(message: pb.ProcessingRequest) -> ResponseBody:
    return ResponseBody(message.response_body.body, message.response_body.end_of_stream)


_DECODERS: dict[str, Callable[[pb.ProcessingRequest], Event]] = {
    "request_headers": _decode_request_headers,
    "request_body": _decode_request_body,
    "request_trailers": lambda message: RequestTrailers(),
    "response_headers": _decode_response_headers,
    "response_body": _decode_response_body,
    "response_trailers": lambda message: ResponseTrailers(),
}

_BODY_MODES = frozenset(BodyMode)


def _body_mode(number: int) -> BodyMode | None:
    # Protobuf passes on unknown enum values, which are modes of a later version of
    # Envoy.
    return BodyMode(number) if number in _BODY_MODES else None


def _headers(headers: pb.HttpHeaders) -> dict[str, str]:
    # Since version 1.28, Envoy sends ``raw_value``. Earlier versions send ``value``. If
    # a name occurs twice, the first header is used, since honest clients do not send a
    # second content-length or path.
    decoded: dict[str, str] = {}
    for header in headers.headers.headers:
        key = header.key
        if key not in decoded:
            decoded[key] = header.raw_value.decode("latin-1") or header.value
    return decoded


def encode(event: Event, reply: Reply) -> Sequence[bytes]:
    """Encode a reply to an event as one message, or as several in full duplex."""
    match reply:
        case Route():
            return (_encode_route(event, reply),)
        case AskRequestBody():
            return _ASK_REQUEST_BODY
        case Continue():
            return _CONTINUE[type(event)]
        case AskResponseBody():
            return _ASK_RESPONSE_BODY
        case Withhold():
            return ()
        case Release():
            return _encode_release(reply)
        case Rewrite():
            message = pb.ProcessingResponse()
            message.response_body.response.body_mutation.body = reply.body
            return (message.SerializeToString(),)
        case Echo():
            return _chunks(PHASES[type(event)], reply.body, reply.end_of_stream)


def _encode_route(event: Event, reply: Route) -> bytes:
    if reply.body is None:
        return _encode_decision(PHASES[type(event)], reply)
    message = pb.ProcessingResponse.FromString(_encode_decision("request_body", reply))
    common = message.request_body.response
    # Envoy does not update content-length, and answers 500 if it differs from the body.
    _set_header(common, "content-length", str(len(reply.body)).encode())
    common.body_mutation.body = reply.body
    return message.SerializeToString()


def _set_header(common: pb.CommonResponse, key: str, value: bytes) -> None:
    option = common.header_mutation.set_headers.add()
    option.header.key = key
    option.header.raw_value = value
    option.append_action = _OVERWRITE


# Replies with a decision differ only in a few numbers at fixed places. Building a reply
# from protobuf's objects takes 30 us, a third of a request's total CPU time. Each kind
# of reply is therefore built only once, with markers in place of the numbers, and the
# numbers are filled in for each request.

_DOUBLE = struct.Struct("<d")
_NUMBERS = ("bytes", "prompt_tokens", "output_tokens", "budget_tokens")
_MARKS = tuple(b"mark_no%d" % i for i in range(len(_NUMBERS)))  # 8 bytes, a double
_BUDGET_MARK = b"\xff"


@dataclass(frozen=True, slots=True)
class _Template:
    """A serialized reply, split at its markers.

    With a budget marker of two digits and one number, ``...BB...NNNNNNNN...`` becomes
    ``fixed = (b"...", b"...", b"...")`` and the layout ``<3s2s3sd3s``; ``fill(b"42",
    7)`` packs ``...42...``, the double 7.0 and ``...``. Protobuf may serialize the
    values in an order that differs from the arguments of ``fill``; ``arrange`` corrects
    the order.
    """

    layout: struct.Struct
    """Layout of the fixed pieces and of the values between the pieces."""
    fixed: tuple[bytes, ...]
    arrange: Callable[[tuple[bytes | int, ...]], tuple[bytes | int, ...]]
    """Function that puts the fixed pieces and the values into the layout's order."""

    def fill(self, *values: bytes | int) -> bytes:
        """Serialize the reply with these values."""
        return self.layout.pack(*self.arrange(self.fixed + values))


@functools.lru_cache(maxsize=4096)
def _template(
    phase: str, pool: str, model: str, category: str, reason: str, budget_digits: int
) -> _Template:
    message = pb.ProcessingResponse()
    getattr(message, phase).SetInParent()
    budget_mark = budget_digits * _BUDGET_MARK
    if budget_mark:
        common = getattr(message, phase).response
        _set_header(common, POOL_HEADER, pool.encode())
        _set_header(common, BUDGET_HEADER, budget_mark)
        if model:
            _set_header(common, MODEL_HEADER, model.encode())
        common.clear_route_cache = True
    values = message.dynamic_metadata.fields[METADATA_NAMESPACE].struct_value.fields
    values["pool"].string_value = pool
    if model:
        values["model"].string_value = model
    values["category"].string_value = category
    values["reason"].string_value = reason
    for key, mark in zip(_NUMBERS, _MARKS, strict=True):
        values[key].number_value = _DOUBLE.unpack(mark)[0]
    wire = message.SerializeToString()
    # For each marker: its offset, the index of its value in the arguments of ``fill``,
    # and the marker itself.
    marks = sorted(
        (wire.index(m), i, m) for i, m in enumerate((budget_mark, *_MARKS)) if m
    )
    fixed, layout, end = [], "<", 0
    for start, slot, mark in marks:
        fixed.append(wire[end:start])
        layout += f"{start - end}s{len(mark)}s" if slot == 0 else f"{start - end}sd"
        end = start + len(mark)
    fixed.append(wire[end:])
    layout += f"{len(wire) - end}s"
    order = [n for i, (_, slot, _) in enumerate(marks) for n in (i, len(fixed) + slot)]
    arrange = operator.itemgetter(*order, len(marks))
    return _Template(struct.Struct(layout), tuple(fixed), arrange)


def _encode_decision(phase: str, reply: Route | Release) -> bytes:
    """Encode the reply that sets a decision's headers and metadata.

    In shadow mode it sets only the metadata, no header, and keeps the route.
    """
    decision = reply.decision
    assert decision is not None
    budget_tokens = decision.budget_tokens
    budget = b"" if reply.shadow else b"%d" % budget_tokens
    pool = decision.pool
    template = _template(
        phase, pool.name, pool.model, decision.category, decision.reason, len(budget)
    )
    filled = template.fill(
        budget,
        decision.body_bytes,
        decision.prompt_tokens,
        decision.output_tokens,
        budget_tokens,
    )
    if reply.decision_token:
        filled += _encode_token(reply.decision_token)
    if decision.retry_cut and not reply.shadow:
        filled += _encode_retry_cut(phase, decision)
    return filled


def _encode_retry_cut(phase: str, decision: Decision) -> bytes:
    """Encode one more header for a reply that sets headers; see ``_encode_token``."""
    message = pb.ProcessingResponse()
    limit_tokens = decision.limit_tokens or 0
    value = f"{decision.pool.max_model_len} {limit_tokens}".encode()
    _set_header(getattr(message, phase).response, RETRY_CUT_HEADER, value)
    return message.SerializeToString()


def _encode_token(decision_token: bytes) -> bytes:
    """Encode additional ``dynamic_metadata`` for a reply that has metadata.

    A parser merges a message field that occurs twice (protobuf's encoding guide, "Last
    One Wins"), so the result can be appended to the serialized reply.
    """
    message = pb.ProcessingResponse()
    values = message.dynamic_metadata.fields[TOKEN_NAMESPACE].struct_value.fields
    values[TOKEN_KEY].string_value = base64.b64encode(decision_token).decode()
    return message.SerializeToString()


def _encode_release(reply: Release) -> list[bytes]:
    head = _CONTINUE[RequestHeaders][0]
    if reply.decision is not None:
        head = _encode_decision("request_headers", reply)
    messages = [head, *_chunks("request_body", reply.body, reply.end_of_stream)]
    if reply.trailers:
        messages += _CONTINUE[RequestTrailers]
    return messages


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
    # If the submessage were only accessed, the oneof would stay unset. A reply without
    # the oneof is invalid, and the client would receive a 500.
    getattr(message, phase).SetInParent()
    if override:
        message.mode_override.CopyFrom(pb.ProcessingMode(**override))
    return (message.SerializeToString(),)


_CONTINUE = {kind: _constant(phase) for kind, phase in PHASES.items()}
# Always request the response headers: the sampler decides only when the body arrives,
# and the reply to the body cannot change the mode. If the response is not sampled, the
# stream is ended.
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
