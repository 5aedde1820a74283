"""CPU time per request of the HTTP/2 state machine, without sockets and protobuf.

    python tests/benchmarks/native_machine.py

Each request is the sequence that Envoy sends: HEADERS (with a repeated block), two
messages, and a reset after the server has ended the stream. ``batch`` is the number of
requests whose frames arrive in one read.
"""

import argparse
import time
from collections.abc import Mapping

from hpack import Encoder

from extproc.rpc.call import Call, Replies, Send
from extproc.rpc.connection import Connection
from extproc.rpc.limits import Limits

INTRODUCTION = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\0\0\0\4\0\0\0\0\0"  # SETTINGS
    b"\0\0\4\x08\0\0\0\0\0\x7f\0\0\0"  # WINDOW_UPDATE that fits all replies
)
REPLIES = (b"r" * 2,), (b"r" * 60,)
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
    (":authority", "extproc"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("x-envoy-internal", "true"),
    ("x-forwarded-for", "10.0.0.1"),
]


class TwoMessages:
    """A call that answers twice and ends."""

    def __init__(self) -> None:
        self._count = 0

    def receive(self, message: bytes) -> Replies:
        self._count += 1
        return REPLIES[self._count - 1], self._count == 2

    def half_closed(self) -> Replies:
        return (), True

    def closed(self, cancelled: bool) -> None:
        pass


class TwoMessagesService:
    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call:
        return TwoMessages()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4, "big") + b"m" * size


def reads(requests: int, batch: int, body_bytes: int, frame_bytes: int) -> list[bytes]:
    """Return the bytes of each read from a connection's socket."""
    encoder, found = Encoder(), []
    body = message(body_bytes)
    chunks = [body[at : at + frame_bytes] for at in range(0, len(body), frame_bytes)]
    for start in range(0, requests, batch):
        streams = [2 * n + 1 for n in range(start, start + batch)]
        headers = encoder.encode(HEADERS)
        for n, stream in enumerate(streams):
            block = headers if n == 0 else encoder.encode(HEADERS)
            found.append(frame(1, 4, stream, block) + frame(0, 0, stream, message(300)))
        found[-batch:] = [b"".join(found[-batch:])]
        bodies = b"".join(
            frame(0, 0, stream, chunk) for stream in streams for chunk in chunks
        )
        found += [bodies[at : at + 262_144] for at in range(0, len(bodies), 262_144)]
        found.append(b"".join(frame(3, 0, stream, bytes(4)) for stream in streams))
    return found


def cpu_us_a_request(
    requests: int, batch: int, body_bytes: int, frame_bytes: int
) -> float:
    """Feed a state machine, and return its CPU microseconds per request."""
    pieces = reads(requests, batch, body_bytes, frame_bytes)
    views = [memoryview(bytearray(piece)) for piece in pieces]
    best = float("inf")
    for _ in range(3):
        connection = Connection(
            TwoMessagesService(), Limits(), lambda *_: None, lambda: None
        )
        connection.receive(INTRODUCTION, 0.0)
        began = time.process_time()
        for view in views:
            connection.receive(view, 0.0)
            connection.take()
        best = min(best, time.process_time() - began)
        if connection.finished:
            raise RuntimeError("the machine gave up")
    return best * 1e6 / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=8_000)
    arguments = parser.parse_args()
    print(f"{'body bytes':>10} {'frame bytes':>11} {'batch':>5} {'us a request':>12}")
    for body_bytes, frame_bytes, batch in (
        (4_000, 1 << 20, 1),
        (4_000, 1 << 20, 4),
        (4_000, 1 << 20, 16),
        (220_000, 16_384, 4),
        (220_000, 1 << 20, 4),
    ):
        requests = arguments.requests // (1 if body_bytes < 10_000 else 20)
        requests -= requests % batch
        cost = cpu_us_a_request(requests, batch, body_bytes, frame_bytes)
        print(f"{body_bytes:>10} {frame_bytes:>11} {batch:>5} {cost:>12.1f}")


if __name__ == "__main__":
    main()
