"""Each model's chat template drops all reasoning, keeps all, or keeps the latest."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from extproc.demo.standin.tokenizer import Tokenizer
from extproc.demo.texts import Kind, write
from extproc.exchange.body_parser import parse_request
from extproc.routing.bound import Bounded
from extproc.routing.decision import Outcome
from extproc.routing.policy import Policy, Pool
from extproc.routing.ratio import TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request
from extproc.routing.router import Router

CHAT = "/v1/chat/completions"
TOKENIZER = Tokenizer()
POOLS = [Pool("short", 8192, 8192), Pool("long", 65536, 65536)]
KINDS = [kind for kind in Kind if kind is not Kind.DIGITS]

Keeps = Callable[[int, int], bool]
"""A function that tells whether a template renders the reasoning of turn ``i`` of
``n``.
"""

TEMPLATES: dict[str, Keeps] = {
    "drops it": lambda turn, turns: False,
    "keeps it": lambda turn, turns: True,
    "keeps the last": lambda turn, turns: turn == turns - 1,
}


def make_chat(rng: random.Random, share: float) -> list[dict[str, Any]]:
    """Return a chat of several turns, in which some answers contain reasoning."""

    def text(low: int, high: int) -> str:
        return write(rng.choice(KINDS), rng.randint(low, high), rng)

    messages: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 6)):
        messages.append({"role": "user", "content": text(100, 2000)})
        answer = {"role": "assistant", "content": text(100, 1500)}
        if rng.random() < share:
            answer["reasoning_content"] = text(500, 6000)
        messages.append(answer)
    return [*messages, {"role": "user", "content": text(50, 500)}]


def count(messages: list[dict[str, Any]], keeps: Keeps) -> int:
    """Count the tokens of a chat, with the tokenizer Tekken and a template."""
    answers = [m for m in messages if m["role"] == "assistant"]
    tokens = 0
    for message in messages:
        tokens += 4 + TOKENIZER.count(message["content"])
        if "reasoning_content" in message:
            turn = next(i for i, each in enumerate(answers) if each is message)
            if keeps(turn, len(answers)):
                tokens += TOKENIZER.count(message["reasoning_content"])
    return tokens


@pytest.mark.parametrize(
    ("seed", "share"),
    [
        (2, 1.0),
        (2, 0.3),
        # This case is slow to compute and similar to the other cases.
        pytest.param(1, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 0.3, marks=pytest.mark.slow),
        pytest.param(7, 1.0, marks=pytest.mark.slow),
        pytest.param(7, 0.3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("keeps", TEMPLATES.values(), ids=TEMPLATES)
def test_reasoning_costs_what_the_template_makes_of_it(
    keeps: Keeps, seed: int, share: float
) -> None:
    rng = random.Random(seed)
    router = Router(Policy(POOLS), Bounded(TextEstimator()), TextRatios())
    errors = []
    for _ in range(130):
        messages = make_chat(rng, share)
        body = json.dumps({"model": "m", "messages": messages, "max_tokens": 100})
        request = parse_request(CHAT, body.encode())
        assert isinstance(request, Request)
        decision = router.route(request)
        counted = count(messages, keeps)
        lesson = router.learn(decision, Outcome(200, counted, 10))
        assert lesson.error_ratio is not None
        errors.append(abs(lesson.error_ratio))

    late = errors[100:]
    assert sum(late) / len(late) < 0.05


def test_documents_are_learned_as_a_template_renders_them() -> None:
    rng = random.Random(3)
    router = Router(Policy(POOLS), Bounded(TextEstimator()), TextRatios())
    errors = []
    for _ in range(120):
        text = write(Kind.PROSE, rng.randint(2000, 12_000), rng)
        body = {
            "messages": [{"role": "user", "content": "What is in it?"}],
            "documents": [{"text": text}],
            "max_tokens": 100,
        }
        request = parse_request(CHAT, json.dumps(body).encode())
        assert isinstance(request, Request)
        lesson = router.learn(
            router.route(request), Outcome(200, TOKENIZER.count(text) + 10, 10)
        )
        errors.append(abs(lesson.error_ratio or 0))

    assert sum(errors[20:]) / 100 < 0.05
