"""Time the parsing of large bodies, and the longest step, which delays other requests.

    python tests/benchmarks/bench_reading.py

The program measures CPU time without sockets, and takes the minimum of three runs. The
event loop runs one step at a time.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

from extproc.exchange.body_parser import BodyParser
from extproc.exchange.paths import ANY_PREFIX

CHAT, COMPLETIONS, EMBEDDINGS = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings")
)
KIB, MIB = 1 << 10, 1 << 20
PROSE = "It was a bright cold day in April, and the clocks were striking thirteen. "
CODE = 'def f(x):\n    return {"a": [1, 2], "b": "c"}\n'
SIZES = (220_000, MIB, 4 * MIB, 16 * MIB)


def chat(content: object, **how: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return json.dumps(body, **how).encode()


def slices(size: int, each: int) -> bytes:
    message = {"role": "user", "content": (PROSE * (each // len(PROSE) + 1))[:each]}
    return json.dumps({"messages": [message] * (size // (each + 36))}).encode()


def image(size: int) -> bytes:
    url = {"url": "data:image/png;base64," + "iVBORw0K" * (size // 8)}
    return chat(
        [{"type": "text", "text": PROSE}, {"type": "image_url", "image_url": url}]
    )


BODIES: dict[str, tuple[str, Callable[[int], bytes], str]] = {
    "prose": (CHAT, lambda n: chat(PROSE * (n // len(PROSE))), ""),
    "Japanese": (CHAT, lambda n: chat("日本語の文。" * (n // 18), ensure_ascii=False), ""),
    "code": (CHAT, lambda n: chat(CODE * (n // (len(CODE) + 8))), ""),
    "\\u00e9 everywhere": (CHAT, lambda n: chat("é" * (n // 6)), ""),
    "\\\" everywhere": (CHAT, lambda n: chat('"' * (n // 2)), ""),
    "an image": (CHAT, image, ""),
    "turns of 100 B": (CHAT, lambda n: slices(n, 100), ""),
    "turns of 2 kB": (CHAT, lambda n: slices(n, 2000), ""),
    "token ids": (COMPLETIONS, lambda n: json.dumps({"prompt": [128_256] * (n // 8)}).encode(), ""),
    "2,048 inputs": (EMBEDDINGS, lambda n: json.dumps({"input": [PROSE * (n // 2048 // 74 + 1)] * 2048}).encode(), ""),
    "empty messages": (CHAT, lambda n: b'{"messages":[' + b"{}," * (n // 3) + b"{}]}", ""),
    "nesting": (CHAT, lambda n: b'{"messages":' + b"[" * n, ""),
    "prose, gzip": (CHAT, lambda n: gzip.compress(chat(PROSE * (n // len(PROSE))), 1), "gzip"),
}  # fmt: skip


def read(path: str, body: bytes, encoding: str) -> tuple[float, float, int, str]:
    """Return CPU ms of all steps and of the longest, the number of steps, and the
    result.
    """
    reading = BodyParser(ANY_PREFIX.find(path), body, encoding, 64 * MIB)
    took = []
    while reading.result is None:
        began = time.thread_time()
        reading.step()
        took.append(1e3 * (time.thread_time() - began))
    result = reading.result
    return sum(took), max(took), len(took), result if isinstance(result, str) else ""


def main() -> None:
    print(f"{'body':<20} {'bytes':>10} {'CPU ms':>8} {'longest step':>13} {'steps':>6}")
    for name, (path, make, encoding) in BODIES.items():
        for size in SIZES:
            body = make(size)
            runs = [read(path, body, encoding) for _ in range(3)]
            total, longest = min(run[0] for run in runs), min(run[1] for run in runs)
            _, _, steps, why = runs[0]
            print(
                f"{name:<20} {len(body):>10} {total:>8.2f} {longest:>13.2f} {steps:>6} {why}"
            )


if __name__ == "__main__":
    main()
