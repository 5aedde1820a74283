"""Effect of hostile peers on another client, for one kind of flood at a time.

    python tests/benchmarks/floods.py [--transport native] [--seconds 5] [FLOOD ...]

The program starts ``extproc serve``, a peer that floods one connection for some seconds
(and reconnects whenever it is disconnected), and a grpcio client that calls Decide
every 20 ms with a deadline of 1 s. It prints the client's P50 and P99 in ms, the number
of failures, and how often the peer was disconnected.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from hpack import Encoder

from extproc.wire import router_pb2 as pb

DECIDE = "/tokenbudget.v1.Router/Decide"
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, GOAWAY, UPDATE, MORE = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
INTRODUCTION = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
CHUNK_FRAMES = 500


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def block(path: str, *more: tuple[str, str]) -> bytes:
    """Encode a header block that uses no dynamic table."""
    encoder = Encoder()
    encoder.header_table_size = 0
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return encoder.encode(fields).removeprefix(b"\x20")


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


OPEN = block(PROCESS)
CHECK = block("/grpc.health.v1.Health/Check")
DECIDE_BLOCK = block(DECIDE)
MANY_FIELDS = block(PROCESS, *((f"x{n}", "") for n in range(400)))
BODY = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
ASKED = message(pb.DecideRequest(body=BODY).SerializeToString())

Chunks = Iterator[bytes]


def same(*frames: bytes) -> Callable[[], Chunks]:
    """Return a flood that repeats the same frames on stream 1, which is open."""

    def chunks() -> Chunks:
        yield frame(HEADERS, 4, 1, OPEN)
        data = b"".join(frames) * CHUNK_FRAMES
        while True:
            yield data

    return chunks


def each(make: Callable[[int], bytes]) -> Callable[[], Chunks]:
    """Return a flood that makes frames for a new stream each time."""

    def chunks() -> Chunks:
        stream = 1
        while stream < 2**30:
            ids = range(stream, stream + 2 * CHUNK_FRAMES, 2)
            yield b"".join(map(make, ids))
            stream += 2 * CHUNK_FRAMES

    return chunks


def windows() -> Chunks:
    """F1: send SETTINGS with changed windows while 1,024 streams are open."""
    yield b"".join(frame(HEADERS, 4, 2 * n + 1, OPEN) for n in range(1024))
    entry = b"\0\4\0\0\xff\xff\0\4\0\1\0\0"
    while True:
        yield frame(SETTINGS, 0, 0, entry * 1300)


def few_windows() -> Chunks:
    yield b"".join(frame(HEADERS, 4, 2 * n + 1, OPEN) for n in range(1024))
    entry = b"\0\4\0\0\xff\xff\0\4\0\1\0\0"
    while True:
        yield frame(SETTINGS, 0, 0, entry * 16) * 50


def updates_of_one() -> Chunks:
    """F3: send WINDOW_UPDATE of 1 byte while a thousand answers are blocked."""
    for start in range(0, 1000, 100):
        yield b"".join(
            frame(HEADERS, 4, 2 * n + 1, DECIDE_BLOCK)
            + frame(DATA, 1, 2 * n + 1, ASKED)
            for n in range(start, start + 100)
        )
    while True:
        yield frame(UPDATE, 0, 0, b"\0\0\0\1") * CHUNK_FRAMES


def table_updates() -> Chunks:
    stream = 1
    while True:
        yield frame(HEADERS, 4, stream, b"\x3f\xe1\x1f" * 16_000 + OPEN)
        stream += 2


FLOODS: dict[str, Callable[[], Chunks]] = {
    "settings full of windows": windows,
    "settings of 32 windows": few_windows,
    "window updates of 1": updates_of_one,
    "data of 1 byte": same(frame(DATA, 0, 1, b"\0")),
    "padding only": same(frame(DATA, 8, 1, b"\0")),
    "empty data": same(frame(DATA, 0, 1)),
    "pings": same(frame(PING, 0, 0, bytes(8))),
    "goaway": same(frame(GOAWAY, 0, 0, bytes(8))),
    "priorities": same(frame(PRIORITY, 0, 1, bytes(5))),
    "unknown frames": same(frame(99, 0, 0)),
    "requests, END_STREAM": each(lambda n: frame(HEADERS, 5, n, CHECK)),
    "requests of 400 fields": each(lambda n: frame(HEADERS, 5, n, MANY_FIELDS)),
    "answered, then reset": each(
        lambda n: (
            frame(HEADERS, 4, n, CHECK)
            + frame(DATA, 0, n, message(b""))
            + frame(RST, 0, n, b"\0\0\0\x08")
        )
    ),
    "decided, then reset": each(
        lambda n: (
            frame(HEADERS, 4, n, DECIDE_BLOCK)
            + frame(DATA, 1, n, ASKED)
            + frame(RST, 0, n, b"\0\0\0\x08")
        )
    ),
    "rapid reset": each(
        lambda n: frame(HEADERS, 4, n, OPEN) + frame(RST, 0, n, b"\0\0\0\x08")
    ),
    "a second HEADERS": each(lambda n: frame(HEADERS, 4, n, OPEN) * 2),
    "streams above the limit": each(lambda n: frame(HEADERS, 4, n, OPEN)),
    "HPACK table updates": table_updates,
}


def flood(
    name: str, port: int, seconds: float, cuts: "multiprocessing.Queue[int]"
) -> None:
    """Send a flood until the time is over; return the number of disconnections."""
    end, cut = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as peer:
                threading.Thread(target=discard, args=(peer,), daemon=True).start()
                peer.sendall(INTRODUCTION)
                for chunk in FLOODS[name]():
                    peer.sendall(chunk)
                    if time.monotonic() > end:
                        break
                else:
                    raise ConnectionError
        except OSError:
            cut += 1
    cuts.put(cut)


def discard(peer: socket.socket) -> None:
    try:
        while peer.recv(1 << 16):
            pass
    except OSError:
        pass


async def neighbour(port: int, seconds: float) -> tuple[list[float], int]:
    """Call Decide every 20 ms; return latencies in ms and the number of failures."""
    times, failed = [], 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        decide = channel.unary_unary(DECIDE)
        request = pb.DecideRequest(body=BODY).SerializeToString()

        async def ask() -> None:
            nonlocal failed
            began = time.perf_counter()
            try:
                await decide(request, timeout=1.0, wait_for_ready=True)
                times.append((time.perf_counter() - began) * 1e3)
            except grpc.aio.AioRpcError:
                failed += 1

        await decide(request, timeout=10.0, wait_for_ready=True)
        asked, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            asked.append(asyncio.create_task(ask()))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asked)
    return times, failed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def measure(name: str | None, transport: str, seconds: float) -> str:
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "config.yaml")
        config.write_text(
            f"server: {{listen: '127.0.0.1:{port}', admin: '127.0.0.1:{free_port()}', "
            f"transport: {transport}, lame_duck_s: 0, drain_timeout_s: 0}}\n"
            "log: {level: error}\n"
        )
        server = subprocess.Popen(
            [sys.executable, "-m", "extproc", "serve", "--config", str(config)]
        )
        try:
            asyncio.run(neighbour(port, 0.5))  # warm-up
            cuts: multiprocessing.Queue[int] = multiprocessing.Queue()
            attacker = None
            if name is not None:
                attacker = multiprocessing.Process(
                    target=flood, args=(name, port, seconds, cuts)
                )
                attacker.start()
            times, failed = asyncio.run(neighbour(port, seconds))
            cut = cuts.get(timeout=60) if attacker is not None else 0
            if attacker is not None:
                attacker.join()
            memory = Path(f"/proc/{server.pid}/status").read_text()
            resident = int(memory.split("VmHWM:")[1].split()[0]) / 1024
        finally:
            server.terminate()
            server.wait()
    p99 = sorted(times)[int(len(times) * 0.99)] if times else float("nan")
    p50 = statistics.median(times) if times else float("nan")
    label = name or "nothing"
    return f"{label:28} {p50:8.1f} {p99:8.1f} {len(times):6} {failed:6} {cut:5} {resident:7.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help="default: all")
    parser.add_argument("--transport", default="native", choices=["native", "grpcio"])
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    print(
        f"{'flood':28} {'p50 ms':>8} {'p99 ms':>8} {'ok':>6} {'failed':>6} {'cut':>5} {'peak MB':>7}"
    )
    for name in [None, *(arguments.floods or FLOODS)]:
        print(measure(name, arguments.transport, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
