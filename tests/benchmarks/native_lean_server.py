"""The native transport with a minimal ext_proc application, to measure its own cost.

    python tests/benchmarks/native_lean_server.py 127.0.0.1:18080

The application decodes the message, parses the JSON, adds up the text's length, answers
with one of two constants, and ends the stream. Run it behind Envoy like the other
servers, and compare the CPU time per request.
"""

import asyncio
import json
import sys
from collections.abc import Mapping

from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from extproc.address import Address
from extproc.rpc.call import Call, Replies, Send
from extproc.server.services.health import HealthStatuses, WithHealth
from extproc.server.transport.native import NativeServer, new_event_loop


def routed(pool: bytes) -> bytes:
    response = ext_proc.ProcessingResponse()
    common = response.request_body.response
    header = common.header_mutation.set_headers.add().header
    header.key, header.raw_value = "x-llm-pool", pool
    common.clear_route_cache = True
    return response.SerializeToString()


SHORT, LONG = routed(b"short"), routed(b"long")
EMPTY = {
    kind: ext_proc.ProcessingResponse(**{kind: value}).SerializeToString()
    for kind, value in {
        "request_headers": ext_proc.HeadersResponse(),
        "response_headers": ext_proc.HeadersResponse(),
        "response_body": ext_proc.BodyResponse(),
    }.items()
}


class LeanCall:
    def __init__(self, ends_early: bool) -> None:
        self._ends_early = ends_early

    def receive(self, message: bytes) -> Replies:
        request = ext_proc.ProcessingRequest.FromString(message)
        kind = request.WhichOneof("request")
        if kind == "request_body":
            body = json.loads(request.request_body.body)
            text = sum(len(each["content"]) for each in body["messages"])
            budget = text / 4 + body.get("max_tokens", 1024)
            return (SHORT if budget <= 8192 else LONG,), self._ends_early
        return (EMPTY[kind],), False

    def half_closed(self) -> Replies:
        return (), True

    def closed(self, cancelled: bool) -> None:
        pass


class LeanService:
    def __init__(self, ends_early: bool) -> None:
        self._ends_early = ends_early

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call:
        return LeanCall(self._ends_early)


async def main(address: str, ends_early: bool) -> None:
    health = HealthStatuses()
    health.set_all(True)
    service = WithHealth(LeanService(ends_early), health)
    await NativeServer(service, Address.parse(address)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(f"{__doc__}\n    --all: keep streams open for the response")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(sys.argv[1], ends_early="--all" not in sys.argv))
