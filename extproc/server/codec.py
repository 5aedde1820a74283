"""ext_proc's protobuf messages to events, and replies to messages.

The only module that names the protobuf types of the exchange.
"""

from __future__ import annotations

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


def _body_mode(number: int) -> BodyMode | None:
    return BodyMode(number) if number <= BodyMode.FULL_DUPLEX_STREAMED else None


def _headers(headers: pb.HttpHeaders) -> dict[str, str]:
    # Envoy sends raw_value since 1.28, value before; the first of a name wins, as a
    # second content-length or path is no client's honest doing.
    decoded: dict[str, str] = {}
    for header in headers.headers.headers:
        value = header.raw_value.decode("latin-1") or header.value
        decoded.setdefault(header.key, value)
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
    message = pb.ProcessingResponse()
    if isinstance(event, RequestHeaders):
        common = message.request_headers.response
    else:
        common = message.request_body.response
    _set_decision(message, common, reply.decision)
    if reply.body is not None:
        # Envoy leaves content-length as it was; a body that does not match is a 500.
        _set_header(common, "content-length", str(len(reply.body)))
        common.body_mutation.body = reply.body
    return message.SerializeToString()


def _set_decision(
    message: pb.ProcessingResponse, common: pb.CommonResponse, decision: Decision
) -> None:
    _set_header(common, POOL_HEADER, decision.pool.name)
    _set_header(common, BUDGET_HEADER, str(decision.budget_tokens))
    common.clear_route_cache = True
    values = message.dynamic_metadata.fields[METADATA_NAMESPACE].struct_value.fields
    values["pool"].string_value = decision.pool.name
    values["category"].string_value = decision.category
    values["reason"].string_value = decision.reason
    values["bytes"].number_value = decision.body_bytes
    values["prompt_tokens"].number_value = decision.prompt_tokens
    values["output_tokens"].number_value = decision.output_tokens
    values["budget_tokens"].number_value = decision.budget_tokens


def _set_header(common: pb.CommonResponse, key: str, value: str) -> None:
    option = common.header_mutation.set_headers.add()
    option.header.key = key
    option.header.raw_value = value.encode()
    option.append_action = _OVERWRITE


def _encode_release(reply: Release) -> list[bytes]:
    head = pb.ProcessingResponse()
    head.request_headers.SetInParent()
    if reply.decision is not None:
        _set_decision(head, head.request_headers.response, reply.decision)
    messages = [head.SerializeToString()]
    messages += _chunks("request_body", reply.body, reply.end_of_stream)
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
