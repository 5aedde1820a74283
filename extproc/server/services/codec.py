"""ext_proc's protobuf messages to events, and replies to messages.

The only module that names the protobuf types of the exchange.
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
from extproc.server.services.fast_decode import Wanted, fast_body, fast_headers
from extproc.wire import ext_proc_pb2 as pb

POOL_HEADER = "x-llm-pool"
BUDGET_HEADER = "x-llm-budget"
MODEL_HEADER = "x-llm-model"
"""The base model, if models are configured."""
RETRY_CUT_HEADER = "x-llm-retry-cut"
"""The pool's window and the client's limit, 0 if it set none: ``8192 32000``."""
METADATA_NAMESPACE = "extproc.token_budget"
TOKEN_NAMESPACE = "extproc.receipt"
"""Apart from the numbers, which people read in their logs."""
TOKEN_KEY = "decision"

MAX_ECHO_BYTES = 64 * 1024
"""The largest ``StreamedBodyResponse`` that Envoy's documentation advises."""

_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class UnknownMessageError(Exception):
    """A message that ext_proc does not have, or that is not protobuf."""


def decode(data: bytes, wanted: Wanted) -> Event:
    """Read one ``ProcessingRequest``, fast if it is one of the usual ones.

    Args:
        data: the serialized message.
        wanted: the headers to read. Those of an unusual message are all read.

    Raises:
        UnknownMessageError: not protobuf, or none of the six phases.
    """
    return fast_headers(data, wanted) or fast_body(data) or decode_any(data)


def decode_any(data: bytes) -> Event:
    """Read any ``ProcessingRequest``: the specification of the fast readers.

    Raises:
        UnknownMessageError: not protobuf, or none of the six phases.
    """
    try:
        message = pb.ProcessingRequest.FromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise UnknownMessageError("not a ProcessingRequest") from error
    phase = message.WhichOneof("request")
    if phase is None:
        raise UnknownMessageError("a ProcessingRequest of no known phase")
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
            return _encode_echo(event, reply)


_PHASES: dict[type[Event], str] = {
    RequestHeaders: "request_headers",
    RequestBody: "request_body",
    RequestTrailers: "request_trailers",
}


def _encode_route(event: Event, reply: Route) -> bytes:
    if reply.body is None:
        return _encode_decision(_PHASES[type(event)], reply)
    message = pb.ProcessingResponse.FromString(_encode_decision("request_body", reply))
    common = message.request_body.response
    # Envoy leaves content-length as it was; a body that does not match is a 500.
    _set_header(common, "content-length", str(len(reply.body)).encode())
    common.body_mutation.body = reply.body
    return message.SerializeToString()


def _set_header(common: pb.CommonResponse, key: str, value: bytes) -> None:
    option = common.header_mutation.set_headers.add()
    option.header.key = key
    option.header.raw_value = value
    option.append_action = _OVERWRITE


# Replies with a decision differ in a few numbers at fixed places. Building one of
# protobuf's objects takes 30 us, a third of all that a request costs, so they are built
# once, with marks in the numbers' places, and filled in for each request.

_DOUBLE = struct.Struct("<d")
_NUMBERS = ("bytes", "prompt_tokens", "output_tokens", "budget_tokens")
_MARKS = tuple(b"mark_no%d" % i for i in range(len(_NUMBERS)))  # as doubles: 8 bytes
_BUDGET_MARK = b"\xff"


@dataclass(frozen=True, slots=True)
class _Template:
    """A serialized reply, cut at its marks.

    With a budget mark of two digits and one number, ``...BB...NNNNNNNN...`` becomes
    ``fixed = (b"...", b"...", b"...")`` and the layout ``<3s2s3sd3s``; ``fill(b"42",
    7)`` packs ``...42...``, the double 7.0 and ``...``. Protobuf may write the values
    in another order than ``fill`` takes them: ``arrange`` has it.
    """

    layout: struct.Struct
    """Fixed pieces and, between them, slots."""
    fixed: tuple[bytes, ...]
    arrange: Callable[[tuple[bytes | int, ...]], tuple[bytes | int, ...]]
    """Puts the fixed pieces and the values behind them into the layout's order."""

    def fill(self, *values: bytes | int) -> bytes:
        """Put the values between the fixed pieces."""
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
    # Where each mark begins, which value of ``fill`` it stands for, and the mark.
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
    """Write the reply that sets a decision's headers and metadata.

    In shadow mode the metadata only: no header, and the route as it was.
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
    """One more header for a reply that sets some: see ``_encode_token``."""
    message = pb.ProcessingResponse()
    limit_tokens = decision.limit_tokens or 0
    value = f"{decision.pool.max_model_len} {limit_tokens}".encode()
    _set_header(getattr(message, phase).response, RETRY_CUT_HEADER, value)
    return message.SerializeToString()


def _encode_token(decision_token: bytes) -> bytes:
    """More ``dynamic_metadata`` for a reply that has some.

    A reader merges a message field that comes twice (protobuf's encoding, "Last One
    Wins"), so this goes behind the reply as it is.
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
