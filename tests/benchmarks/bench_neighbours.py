"""Latency of small requests while large ones are parsed, without Envoy.

    python tests/benchmarks/bench_neighbours.py [--seconds 4]

Envoy's own worker also delays small requests, by more than the server does (see
``bench_all.py``). In this program one gRPC client sends bodies of 4 kB one after
another and measures the latency. Another client, on its own connection and in its own
process, keeps sending large bodies.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from rig import GRPCIO, NATIVE, Scenario, chat, get, start_server

from extproc.demo.stack.process import Child, answers_200, free_ports
from extproc.server.services.ext_proc import PROCESS
from extproc.wire import ext_proc_pb2 as pb

MIB = 1 << 20
CONFIG = (("server.max_body_bytes", str(32 << 20)), ("feedback.sample", "0"))
NEIGHBOURS = {
    "nobody": "",
    "220 kB of prose": chat(220_000),
    "1 MiB of prose": chat(MIB),
    "1 MiB of escapes": chat(MIB // 6, sentence="é"),
    "1 MiB of empty messages": '{"messages":[' + "{}," * (MIB // 3) + "{}]}",
    "16 MiB of prose": chat(16 * MIB),
}


def exchange(body: str) -> list[bytes]:
    """Return the messages of one request as Envoy sends them."""
    headers, sent = pb.ProcessingRequest(), pb.ProcessingRequest()
    for key, value in {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        "content-length": str(len(body)),
    }.items():
        headers.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    headers.protocol_config.request_body_mode = pb.ProcessingMode.NONE
    sent.request_body.body = body.encode()
    sent.request_body.end_of_stream = True
    return [headers.SerializeToString(), sent.SerializeToString()]


def requests(port: int, body: str) -> Iterator[float]:
    """Send the request repeatedly; yield the latency of each in milliseconds."""
    options = [("grpc.max_send_message_length", 64 << 20)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        process = channel.stream_stream(PROCESS)
        messages = exchange(body)
        while True:
            began = time.perf_counter()
            replies = list(process(iter(messages)))
            assert len(replies) == 2
            yield 1e3 * (time.perf_counter() - began)


def beside(
    port: int, admin: int, neighbour: str, directory: Path, seconds: float
) -> str:
    """Measure small requests while large ones are sent; return a row of the table."""
    options = ["--port", str(port), "--neighbour", neighbour]
    command = [sys.executable, __file__, *options]
    flood = Child("neighbour", command, directory / "neighbour.log")
    small = requests(port, chat(4000))
    for _ in range(50):
        next(small)
    if NEIGHBOURS[neighbour]:
        flood.start()
        before = answered(admin)
        flood.wait_ready(lambda: answered(admin) >= before + 3, 60)
    took, large = [], answered(admin)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took.append(next(small))
    large = answered(admin) - large - len(took)
    flood.stop()
    cuts = statistics.quantiles(took, n=100)
    return (
        f"{neighbour:<24} {len(took) / seconds:>8.0f} {cuts[49]:>8.2f} {cuts[98]:>8.2f} "
        f"{max(took):>8.2f} {large / seconds:>8.0f}"
    )


def answered(admin: int) -> int:
    """Return the number of bodies for which the server has sent a reply."""
    for line in get(f"http://127.0.0.1:{admin}/metrics").splitlines():
        if line.startswith('extproc_message_seconds_count{phase="request_body"}'):
            return int(float(line.rpartition(" ")[2]))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--neighbour", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.neighbour:
        for _ in requests(args.port, NEIGHBOURS[args.neighbour]):
            pass
    for transport in (GRPCIO, NATIVE):
        print(f"{transport:<24} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'max':>8} {'large/s':>8}")  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            (admin,) = free_ports(1)
            server, (at,) = start_server(Scenario(transport, CONFIG), Path(name), admin)
            assert server is not None
            with server:
                server.wait_ready(lambda: answers_200(f"http://127.0.0.1:{admin}/readyz"), 30)  # fmt: skip  # noqa: B023
                port = at["socket_address"]["port_value"]
                for neighbour in NEIGHBOURS:
                    print(beside(port, admin, neighbour, Path(name), args.seconds), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
