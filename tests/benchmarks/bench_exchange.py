"""Time a complete ext_proc exchange, from incoming messages to outgoing messages.

    python tests/benchmarks/bench_exchange.py

For each body size, the program prints the CPU microseconds of four steps: the opening
of a stream, the request headers, the body, and the end. Each figure is the minimum of
several runs. There is no transport and no response.
"""

from __future__ import annotations

from bench_routing import least_us, make_body

from extproc.config import Config, FeedbackConfig
from extproc.server.build import build_generation
from extproc.server.in_force import InForce
from extproc.server.observe.metrics import Metrics
from extproc.server.services.ext_proc import PROCESS, ExtProcService
from extproc.wire import ext_proc_pb2 as pb

_MODES = {"none": 0, "buffered": 2, "streamed": 1, "full duplex": 4}
_METADATA = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}


def messages(body: bytes, mode: int) -> tuple[bytes, bytes]:
    """Return the two messages that Envoy sends for a request."""
    head = pb.ProcessingRequest()
    head.request_headers.headers.headers.extend(
        pb.HeaderValue(key=key, raw_value=value.encode())
        for key, value in {
            ":authority": "llm.example.com",
            ":path": "/v1/chat/completions",
            ":method": "POST",
            ":scheme": "http",
            "content-length": str(len(body)),
            "content-type": "application/json",
            "authorization": "Bearer 0123456789abcdef0123456789abcdef",
            "user-agent": "OpenAI/Python 2.8.1",
            "x-forwarded-proto": "http",
            "x-request-id": "7f9c2f0e-1d9b-4b7b-9c55-4d8c7b6ff6c1",
        }.items()
    )
    head.protocol_config.request_body_mode = mode  # type: ignore[assignment]
    whole = pb.ProcessingRequest()
    whole.request_body.body, whole.request_body.end_of_stream = body, True
    return head.SerializeToString(), whole.SerializeToString()


def time_exchange(size: int, mode: int) -> float:
    """Return the microseconds of CPU time that one exchange takes."""
    generation = build_generation(Config(feedback=FeedbackConfig(sample=0.0)))
    service = ExtProcService(InForce(generation), Metrics())
    head, whole = messages(make_body(size), mode)

    def exchange() -> None:
        call = service.open(PROCESS, _METADATA, lambda replies, end=False: None)
        assert call is not None
        call.receive(head)
        _, end = call.receive(whole)
        assert end
        call.closed(cancelled=False)

    return least_us(exchange)


def main() -> None:
    """Measure all cases and print the table."""
    print(f"{'body':>8}", *(f"{name:>12}" for name in _MODES))
    for size in (512, 4096, 32768):
        times = (time_exchange(size, mode) for mode in _MODES.values())
        print(f"{size:8}", *(f"{us:12.1f}" for us in times))


if __name__ == "__main__":
    main()
