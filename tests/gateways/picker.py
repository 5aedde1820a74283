"""A stand-in for the Inference Extension's endpoint picker of one pool.

It reads each request's whole body, names the pool's only server, and sends the body on,
as the extension's protocol for full-duplex bodies requires. Like a server in Go, it
accepts messages of at most 4 MiB, which is also grpcio's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
from google.protobuf.struct_pb2 import Struct

from extproc.wire import ext_proc_pb2 as pb

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"
"""The header, and the key of the metadata `envoy.lb`, with the picked server."""
PICKER = "x-picker"
"""A header of the response with the picker's name."""
_PIECE_BYTES = 60_000
"""Below 64 KiB, the largest piece that Envoy accepts."""


class Picker:
    """A picker that runs in threads of this process."""

    def __init__(self, name: str, server_port: int, port: int = 0) -> None:
        self._name = name.encode()
        self._server = f"127.0.0.1:{server_port}"
        self.pools: list[str] = []
        """The header ``x-llm-pool`` of each request."""
        self._grpc = grpc.server(futures.ThreadPoolExecutor(16))
        process = grpc.stream_stream_rpc_method_handler(
            self._process,
            pb.ProcessingRequest.FromString,
            pb.ProcessingResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Process": process})
        self._grpc.add_generic_rpc_handlers((handler,))
        self.port = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
        self._grpc.start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._grpc.stop(grace=None).wait()

    def _process(
        self, messages: Iterator[pb.ProcessingRequest], _: grpc.ServicerContext
    ) -> Iterator[pb.ProcessingResponse]:
        body = b""
        for message in messages:
            match message.WhichOneof("request"):
                case "request_headers":
                    self._note(message.request_headers)
                    if message.request_headers.end_of_stream:
                        yield self._pick()
                case "request_body":
                    body += message.request_body.body
                    if message.request_body.end_of_stream:
                        yield self._pick()
                        yield from _sent_on(body, end=True)
                case "request_trailers":
                    yield self._pick()
                    yield from _sent_on(body, end=False)
                    yield pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
                case "response_headers":
                    headers = _setting(PICKER, self._name)
                    yield pb.ProcessingResponse(response_headers=headers)
                case "response_body":
                    piece = message.response_body
                    part = _part(piece.body, end=piece.end_of_stream)
                    yield pb.ProcessingResponse(response_body=part)
                case "response_trailers":
                    yield pb.ProcessingResponse(response_trailers=pb.TrailersResponse())

    def _note(self, headers: pb.HttpHeaders) -> None:
        named = {each.key: each.raw_value for each in headers.headers.headers}
        self.pools.append(named.get("x-llm-pool", b"").decode())

    def _pick(self) -> pb.ProcessingResponse:
        metadata = Struct()
        metadata.update({"envoy.lb": {DESTINATION: self._server}})
        headers = _setting(DESTINATION, self._server.encode())
        return pb.ProcessingResponse(request_headers=headers, dynamic_metadata=metadata)


def _setting(name: str, value: bytes) -> pb.HeadersResponse:
    option = pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value))
    mutation = pb.HeaderMutation(set_headers=[option])
    return pb.HeadersResponse(response=pb.CommonResponse(header_mutation=mutation))


def _sent_on(body: bytes, *, end: bool) -> Iterator[pb.ProcessingResponse]:
    for start in range(0, len(body) or 1, _PIECE_BYTES):
        stop = start + _PIECE_BYTES
        part = _part(body[start:stop], end=end and stop >= len(body))
        yield pb.ProcessingResponse(request_body=part)


def _part(body: bytes, *, end: bool) -> pb.BodyResponse:
    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=end)
    mutation = pb.BodyMutation(streamed_response=streamed)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))
