"""Texts counted by a stand-in tokenizer, and the shared corpora if they are available."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from extproc.exchange.body_parser import parse_request
from extproc.routing.category import classify
from extproc.routing.features import Features, measure
from extproc.routing.request import Prompt, Request

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sample:
    """A prompt with its backend's token count."""

    features: Features
    category: str
    prompt_tokens: int


@dataclass(frozen=True)
class CorpusRow:
    """One request of the shared corpora."""

    request: Request
    features: Features
    category: str
    tokens: dict[str, int]


Tokenizer = Callable[[str], int]

_PIECES = re.compile(r" ?[A-Za-z]{1,6}|[0-9]{1,3}|\n+| +|[^\w\s]")
_DIGIT_PIECES = re.compile(r" ?[A-Za-z]{1,4}|[0-9]|\n| {1,4}|[^\w\s]")


def triple_digits(text: str) -> int:
    """Count tokens with a vocabulary that joins three digits or six letters; add 30."""
    return 30 + len(_PIECES.findall(text))


def single_digits(text: str) -> int:
    """Count tokens with a vocabulary that splits every digit; add 4."""
    return 4 + len(_DIGIT_PIECES.findall(text))


def write_text(rng: random.Random) -> str:
    """Generate words, numbers and punctuation, with random proportions and size."""
    digits, breaks = rng.random() ** 3, rng.random() / 4
    longest = rng.randint(4, 12)
    pieces = []
    for _ in range(int(10 ** rng.uniform(1, 3))):
        if rng.random() < digits:
            pieces.append(str(rng.randrange(10 ** rng.randint(1, 8))))
        else:
            size = rng.randint(1, longest)
            pieces.append("".join(rng.choices("etaoinshrdlu", k=size)))
        pieces.append(rng.choice([", ", ".\n", ": "]) if rng.random() < breaks else " ")
    return "".join(pieces)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Return 1,500 texts, the same in every run."""
    rng = random.Random(7)
    return [write_text(rng) for _ in range(1500)]


@pytest.fixture(scope="session")
def sample_of() -> Callable[[str, Tokenizer], Sample]:
    """Build a sample from a text and a tokenizer."""

    def make(text: str, tokenizer: Tokenizer) -> Sample:
        encoded = text.encode()
        features = measure(Prompt(encoded), len(encoded) + 100)
        return Sample(features, classify(features), tokenizer(text))

    return make


@pytest.fixture(scope="session")
def samples(
    texts: list[str], sample_of: Callable[[str, Tokenizer], Sample]
) -> list[Sample]:
    """Return the texts with token counts of a vocabulary that joins digits."""
    return [sample_of(text, triple_digits) for text in texts]


@pytest.fixture(scope="session")
def other_samples(
    texts: list[str], sample_of: Callable[[str, Tokenizer], Sample]
) -> list[Sample]:
    """Return the texts with token counts of a vocabulary that splits digits."""
    return [sample_of(text, single_digits) for text in texts]


@pytest.fixture(scope="session")
def corpora_path() -> Path:
    """Return the folder of the shared corpora; skip if it is absent."""
    shared = Path(os.environ.get("EXTPROC_SHARED", _ROOT.parent / "shared"))
    path = shared / "data" / "corpora"
    if not path.is_dir():
        pytest.skip(f"no request corpora at {path}")
    return path


@pytest.fixture(scope="session")
def corpus(corpora_path: Path) -> list[CorpusRow]:
    """Return all requests of the shared corpora, in one shuffled order."""
    rows = [_read_row(line) for line in _read_lines(corpora_path)]
    random.Random(1).shuffle(rows)
    return rows


def _read_lines(corpora: Path) -> Iterator[str]:
    for path in sorted(corpora.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from lines


def _read_row(line: str) -> CorpusRow:
    row = json.loads(line)
    body = {"messages": row["messages"]}
    if row.get("tools"):
        body["tools"] = row["tools"]
    if row.get("max_tokens") is not None:
        body["max_tokens"] = row["max_tokens"]
    encoded = json.dumps(body, ensure_ascii=False).encode()
    request = parse_request("/v1/chat/completions", encoded)
    assert isinstance(request, Request), row["id"]
    features = measure(request.prompt, request.body_bytes)
    return CorpusRow(request, features, classify(features), row["tokens"])
