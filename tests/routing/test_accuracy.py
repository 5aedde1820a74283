"""Accuracy of the default estimator on real requests and six real tokenizers.

The estimator estimates each request and then learns from it. The first tenth of the
requests is not scored. The tests assert the figures that the documentation promises;
the measured figures are better.
"""

import gzip
import itertools
import json
import math
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from extproc.exchange.body_parser import parse_request
from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded
from extproc.routing.coefficients import FAMILIES as ALL_FAMILIES
from extproc.routing.features import Features, measure
from extproc.routing.prior import known_families
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Request

FAMILIES = ("llama3", "tekken", "qwen", "o200k", "deepseek_v3", "gemma3")
"""Names of the tokenizers that counted the corpora."""

THRESHOLD = 8192


class CorpusRow(Protocol):
    request: Request
    features: Features
    category: str
    tokens: dict[str, int]


@dataclass
class Scores:
    """Shares of the scored requests, and the mean relative error of these requests."""

    error: float = 0.0
    above_bound: float = 0.0
    misrouted_by_point: float = 0.0
    needlessly_long: float = 0.0


def replay(corpus: list[CorpusRow], family: str) -> Scores:
    estimator, allowance = Bounded(TextEstimator()), OutputAllowance()
    rng = random.Random(3)
    scores = Scores()
    unscored = len(corpus) // 10
    share = 1 / (len(corpus) - unscored)
    for n, row in enumerate(corpus):
        counted, limit = row.tokens[family], row.request.max_tokens
        written = max(1, round(math.exp(rng.gauss(math.log(180), 0.9))))
        output = limit or written
        estimate = estimator.estimate("m", row.category, row.features)
        reserved = limit or allowance.allow("m", row.category)
        if n >= unscored:
            fits = counted + output <= THRESHOLD
            fits_by_point = estimate.prompt_tokens + output <= THRESHOLD
            routed_short = estimate.bound_tokens + reserved <= THRESHOLD
            scores.error += share * abs(estimate.prompt_tokens / counted - 1)
            scores.above_bound += share * (counted > estimate.bound_tokens)
            scores.misrouted_by_point += share * (fits != fits_by_point)
            scores.needlessly_long += share * (fits and not routed_short)
        estimator.observe("m", row.category, row.features, counted)
        if limit is None:
            allowance.observe("m", row.category, written, truncated=False)
    return scores


def test_one_request_in_three_encodings_has_the_same_features(
    corpora_path: Path,
) -> None:
    path = corpora_path / "cjk.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 100)]
    for row in rows:
        body = {"messages": row["messages"]}
        compact = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        go = compact.replace("<", "\\u003c").replace(">", "\\u003e")
        encodings = (compact, json.dumps(body), go.replace("&", "\\u0026"))
        vectors = []
        for encoding in encodings:
            request = parse_request("/v1/chat/completions", encoding.encode())
            assert isinstance(request, Request)
            vectors.append(measure(request.prompt, 0).terms.tolist())
        assert vectors[0] == vectors[1] == vectors[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_keeps_its_promises(corpus: list[CorpusRow], family: str) -> None:
    scores = replay(corpus[::2], family)
    assert scores.error < 0.045
    assert scores.misrouted_by_point < 0.007
    assert 0.005 < scores.above_bound < 0.015
    assert scores.needlessly_long < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_tokenizer_is_known_after_few_requests(
    corpus: list[CorpusRow], family: str
) -> None:
    errors = []
    for start in range(0, 500, 100):
        estimator = Bounded(TextEstimator(known_families({family})))
        for row in corpus[start : start + 50]:
            counted = row.tokens[family]
            estimate = estimator.estimate("m", row.category, row.features)
            errors.append(abs(estimate.prompt_tokens / counted - 1))
            estimator.observe("m", row.category, row.features, counted)
    assert sum(errors) / len(errors) < 0.125


def test_false_counts_of_one_client_in_ten_move_the_error_little(
    corpus: list[CorpusRow],
) -> None:
    errors = []
    for share in (0.0, 0.1):
        estimator, rng, each = Bounded(TextEstimator()), random.Random(11), []
        for n, row in enumerate(corpus[:1600]):
            counted = row.tokens["gemma3"]
            key = ("m", row.category, row.features)
            false = rng.random() < share
            if n > 800 and not false:
                each.append(abs(estimator.estimate(*key).prompt_tokens / counted - 1))
            estimator.observe(*key, 10 * counted if false else counted)
        errors.append(sum(each) / len(each))
    assert errors[1] < errors[0] + 0.005


def read_every(corpora_path: Path, step: int) -> list[dict[str, Any]]:
    """Read every n-th request of the corpora and of the additional scripts."""
    scripts = corpora_path.parent / "scripts"
    counts = scripts / "counts-shared.json.gz"
    if not counts.is_file():
        pytest.skip(f"no counts at {counts}")
    with gzip.open(counts, "rt", encoding="utf-8") as file:
        further = json.load(file)
    paths = sorted(corpora_path.glob("*.jsonl.gz")) + sorted(
        scripts.glob("s*.jsonl.gz")
    )
    rows = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in itertools.islice(lines, 0, None, step):
                row = json.loads(line)
                row["tokens"] |= further.get(row["id"], {})
                rows.append(row)
    return rows


def test_the_first_bound_of_an_unknown_tokenizer_is_honest(corpora_path: Path) -> None:
    """With a prior fitted without one family, few of its prompts exceed the bound, and
    the bound is not wide.
    """
    exceeded = []
    factors: dict[str, list[float]] = {"english": [], "code": []}
    kinds = {"chat_en": "english", "rag_docs": "english", "math": "english"}
    samples = []
    for row in read_every(corpora_path, 12):
        body = {key: row[key] for key in ("messages", "tools") if row.get(key)}
        request = parse_request("/v1/chat/completions", json.dumps(body).encode())
        assert isinstance(request, Request)
        samples.append((row, measure(request.prompt, 0)))
    for family in ALL_FAMILIES:
        same_vocabulary = {"o200k", "gptoss"}
        left_out = same_vocabulary if family in same_vocabulary else {family}
        estimator = Bounded(TextEstimator(known_families(left_out)))
        for row, features in samples:
            estimate = estimator.estimate("m", "prose", features)
            exceeded.append(row["tokens"][family] > estimate.bound_tokens)
            category = row["category"]
            kind = kinds.get(category, category.partition("_")[0])
            if kind in factors and estimate.prompt_tokens > 1000:
                ratio = estimate.bound_tokens / estimate.prompt_tokens
                factors[kind].append(ratio)
    assert 0.002 <= sum(exceeded) / len(exceeded) <= 0.01
    assert statistics.median(factors["english"]) <= 1.5
    assert statistics.median(factors["code"]) <= 1.5
