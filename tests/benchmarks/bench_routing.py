"""Time the core without I/O: the steps from a body to its estimate, and an observation.

    python tests/benchmarks/bench_routing.py

The program prints CPU microseconds for each body size, for a chat of one message and
for a chat of many messages. Each figure is the minimum of several runs. ``route`` is
``measure`` plus the further steps that lead to the decision.
"""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable

import extproc.cli  # noqa: F401 - sets one thread for BLAS, as in the server
from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.category import classify
from extproc.routing.features import measure
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request
from extproc.routing.router import Router

_PATH = "/v1/chat/completions"
_SENTENCE = "The quick brown fox jumps over 13 lazy dogs; it is “typographic”.\n"


def make_body(size: int, turns: int = 1) -> bytes:
    """Return a chat request of about ``size`` bytes in ``turns`` messages."""
    text = (_SENTENCE * (size // len(_SENTENCE) + 1))[: (size - 150) // turns]
    roles = ("user", "assistant")
    body = {
        "model": "meta-llama/Llama-3.1-70B-Instruct",
        "messages": [{"role": roles[n % 2], "content": text} for n in range(turns)],
        "max_tokens": 256,
        "temperature": 0.7,
        "stream": True,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def least_us(step: Callable[[], object]) -> float:
    """Return a call's mean CPU microseconds, as the minimum of seven runs."""
    timer = timeit.Timer(step, timer=time.process_time)
    number = max(1, int(0.05 / (timer.timeit(100) / 100 + 1e-6)))
    return min(timer.repeat(7, number)) / number * 1e6


def time_body(estimator: Bounded, body: bytes) -> list[float]:
    """Return the microseconds of each step for a body."""
    request = parse_request(_PATH, body)
    assert isinstance(request, Request)
    prompt = request.prompt
    features = measure(prompt, len(body))
    category = classify(features)
    tokens = len(body) // 4
    for _ in range(600):
        estimator.observe("m", category, features, tokens)
    pools = [Pool("short", 8192, 4096), Pool("long", 131072, 131072)]
    router = Router(Policy(pools), estimator, TextRatios())
    steps: list[Callable[[], object]] = [
        lambda: parse_request(_PATH, body),
        lambda: measure(prompt, len(body)),
        lambda: classify(features),
        lambda: estimator.estimate("m", category, features),
        lambda: estimator.observe("m", category, features, tokens),
        lambda: router.route(request, approximate=True),
    ]
    return [least_us(step) for step in steps]


def main() -> None:
    """Measure all cases and print the table."""
    names = ("parse", "measure", "classify", "estimate", "observe", "route", "total")
    print(f"{'body':>8} {'turns':>5}", *(f"{name:>9}" for name in names))
    for size, turns in ((512, 1), (4096, 1), (32768, 1), (32768, 80), (262144, 1)):
        # Use a new estimator for each case, because the size of its learned state
        # affects the time of an observation.
        times = time_body(Bounded(TextEstimator()), make_body(size, turns))
        total = times[0] + times[-1]
        print(f"{size:8} {turns:5}", *(f"{us:9.1f}" for us in [*times, total]))


if __name__ == "__main__":
    main()
