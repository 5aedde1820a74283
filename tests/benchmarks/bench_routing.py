"""Time the pure core: one body to its estimate, and one observation.

    python tests/benchmarks/bench_routing.py

Prints microseconds of CPU by body size, the least of several runs.
"""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable

from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.category import classify
from extproc.routing.features import measure
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request

_PATH = "/v1/chat/completions"
_SENTENCE = "The quick brown fox jumps over 13 lazy dogs; it is “typographic”.\n"


def make_body(size: int) -> bytes:
    """Return a chat request of about ``size`` bytes."""
    text = (_SENTENCE * (size // len(_SENTENCE) + 1))[: size - 150]
    body = {
        "model": "meta-llama/Llama-3.1-70B-Instruct",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 256,
        "temperature": 0.7,
        "stream": True,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def least_us(step: Callable[[], object]) -> float:
    """Return the least mean microseconds of CPU of a call, over seven runs."""
    timer = timeit.Timer(step, timer=time.process_time)
    number = max(1, int(0.05 / (timer.timeit(100) / 100 + 1e-6)))
    return min(timer.repeat(7, number)) / number * 1e6


def time_size(estimator: Bounded, size: int) -> list[float]:
    """Return the microseconds of each step for a body of ``size`` bytes."""
    body = make_body(size)
    request = parse_request(_PATH, body)
    assert isinstance(request, Request)
    prompt = request.prompt
    features = measure(prompt, len(body))
    category = classify(features)
    tokens = len(body) // 4
    for _ in range(600):
        estimator.observe("m", category, features, tokens)
    steps: list[Callable[[], object]] = [
        lambda: parse_request(_PATH, body),
        lambda: measure(prompt, len(body)),
        lambda: classify(features),
        lambda: estimator.estimate("m", category, features),
        lambda: estimator.observe("m", category, features, tokens),
    ]
    return [least_us(step) for step in steps]


def main() -> None:
    """Measure and print."""
    estimator = Bounded(TextEstimator())
    names = ("parse", "measure", "classify", "estimate", "observe", "decision")
    print(f"{'body':>8}", *(f"{name:>9}" for name in names))
    for size in (512, 4096, 32768, 262144):
        times = time_size(estimator, size)
        print(f"{size:8}", *(f"{us:9.1f}" for us in [*times, sum(times[:4])]))


if __name__ == "__main__":
    main()
