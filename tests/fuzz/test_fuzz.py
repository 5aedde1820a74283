"""Run every target on its corpus, and on random variants for a limited time.

``FUZZ_SECONDS=60 FUZZ_SEED=$RANDOM pytest tests/fuzz`` tries new variants of each
target for a minute. ``python tests/fuzz/coverage_guided.py TARGET`` searches for new
code paths with atheris.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .mutation import mutate
from .targets import TARGETS, Target

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.3"))
SEED = os.environ.get("FUZZ_SEED", "1")
CORPUS = Path(__file__).parent / "corpus"
HANG_S = 20.0
"""Timeout in seconds against endless loops; the slowest input takes milliseconds."""


def seeds(name: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert found, f"no corpus for {name}"
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_variants_of_the_corpus(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target, known = TARGETS[name], seeds(name)
    tried, slowest_s = run(target, known, random.Random(f"{SEED} {name}"))
    with capsys.disabled():
        print(
            f"\n{name:<10} seed {SEED}  inputs {tried:>8}"
            f"  slowest {1000 * slowest_s:8.2f} ms",
            end="",
        )
    assert slowest_s < HANG_S


def run(
    target: Target, known: list[bytes], random_: random.Random
) -> tuple[int, float]:
    slowest_s, tried = 0.0, 0
    deadline_s = time.monotonic() + SECONDS
    while tried < len(known) or time.monotonic() < deadline_s:
        data = known[tried] if tried < len(known) else mutate(random_, known)
        began_s = time.perf_counter()
        try:
            target(data)
        except Exception:
            pytest.fail(f"input: {data!r}")
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        tried += 1
    return tried, slowest_s


SIZE = 1 << 20
LARGE: dict[str, Callable[[], bytes]] = {
    "opening brackets": lambda: b"[" * SIZE,
    "nested objects": lambda: b'{"a":' * (SIZE // 5),
    "nested messages": lambda: b'{"messages":' + b"[" * SIZE,
    "escapes": lambda: (
        b'{"messages":[{"content":"' + b"\\u0041" * (SIZE // 6) + b'"}]}'
    ),
    "empty messages": lambda: b'{"messages":[' + b"{}," * (SIZE // 3) + b"{}]}",
    "parts": lambda: (
        b'{"messages":[{"content":['
        + b'{"type":"text","text":"a"},' * (SIZE // 26)
        + b"{}]}]}"
    ),
    "keys": lambda: b"{" + b",".join(b'"%d":0' % n for n in range(SIZE // 10)) + b"}",
    "digits": lambda: b'{"max_tokens":' + b"9" * SIZE + b"}",
    "backslashes": lambda: b'{"prompt":"' + b"\\" * SIZE,
    "one unfinished event": lambda: b"data: " + b"a" * SIZE,
    "line ends": lambda: b"\n" * SIZE,
    "carriage returns": lambda: b"\r" * SIZE,
    "half line ends": lambda: b"\r\n\r" * (SIZE // 3),
    "empty events": lambda: b"data:\n\n" * (SIZE // 7),
    "usage without an end": lambda: b'{"usage":{"prompt_tokens":' * (SIZE // 26),
    "finish reasons": lambda: b'"finish_reason"    :' * (SIZE // 20),
    "metric lines": lambda: b"vllm:num_requests_waiting{" * (SIZE // 26),
    "spaces": lambda: b"vllm:num_requests_waiting" + b" " * SIZE,
}


@pytest.mark.parametrize("name", ["body", "usage", "injection", "vllm", "document"])
@pytest.mark.parametrize("kind", LARGE)
def test_a_megabyte_of_anything_ends(name: str, kind: str) -> None:
    """A quadratic algorithm would take minutes to hours on these inputs."""
    data = LARGE[kind]()
    began_s = time.monotonic()
    TARGETS[name](data)
    assert time.monotonic() - began_s < HANG_S
