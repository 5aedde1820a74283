"""How good the default estimator is on tokenizers and sources that its prior never met.

    python tests/benchmarks/cross_validate.py CORPORA

CORPORA as for ``fit_coefficients.py``. The sources are dealt into five parts, languages
of one source apart. For each part and tokenizer family the prior is fitted without both,
and the part's requests are replayed: estimate first, then learn. Prints two tables.

Families: the mean relative error, point misroutes at 8,192 tokens, requests above their
bound and requests sent long needlessly, in percent, of each family over all requests
with the shipped prior, and then over the parts, each with its own prior; the first
tenth of a replay is not scored. Last, the error on the first 50 requests of a part.

Risk: what a rate costs, with the shipped prior.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fit_coefficients import fit, read_corpora

from extproc.exchange.body_parser import parse_request
from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded
from extproc.routing.category import classify
from extproc.routing.features import Features, measure
from extproc.routing.prior import FAMILIES, Prior, from_coefficients, known_families
from extproc.routing.regression import TextEstimator
from extproc.routing.regressors import vectorize
from extproc.routing.request import Request
from extproc.routing.risk import Margin

THRESHOLD = 8192
PARTS = 5
COLD = 50
RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Row:
    """One request of the corpora."""

    features: Features
    category: str
    max_tokens: int | None
    written_tokens: int
    tokens: dict[str, int]
    part: int


@dataclass
class Scores:
    """One line for each scored request."""

    error: list[float] = field(default_factory=list)
    misrouted: list[bool] = field(default_factory=list)
    above: list[bool] = field(default_factory=list)
    needless: list[bool] = field(default_factory=list)

    def percent(self) -> list[float]:
        """Return the mean of each column, in percent."""
        columns = (self.error, self.misrouted, self.above, self.needless)
        return [100 * float(np.mean(column)) for column in columns]

    def extend(self, other: Scores) -> None:
        """Add another replay's lines."""
        self.error += other.error
        self.misrouted += other.misrouted
        self.above += other.above
        self.needless += other.needless


def read_rows(corpora: Path) -> list[Row]:
    """Read and shuffle the requests; draw what each would be answered with."""
    rng = random.Random(1)
    rows = [_read_row(raw, rng) for raw in read_corpora(corpora)]
    rng.shuffle(rows)
    return rows


def _read_row(raw: dict[str, Any], rng: random.Random) -> Row:
    body = {key: raw[key] for key in ("messages", "tools") if raw.get(key)}
    request = parse_request("/v1/chat/completions", json.dumps(body).encode())
    assert isinstance(request, Request), raw["id"]
    features = measure(request.prompt, request.body_bytes)
    source = f"{raw['source'].partition(':')[0]} {raw['lang']}"
    return Row(
        features,
        classify(features),
        raw.get("max_tokens"),
        max(1, round(math.exp(rng.gauss(math.log(180), 0.9)))),
        raw["tokens"],
        zlib.crc32(source.encode()) % PARTS,
    )


def replay(
    rows: Sequence[Row], family: str, prior: Prior, rate: float, unscored: int
) -> Scores:
    """Estimate, then learn, request by request."""
    estimator = Bounded(TextEstimator(prior), Margin(rate))
    allowance = OutputAllowance()
    scores = Scores()
    for n, row in enumerate(rows):
        counted = row.tokens[family]
        estimate = estimator.estimate("m", row.category, row.features)
        reserved = row.max_tokens or allowance.allow("m", row.category)
        if n >= unscored:
            output = row.max_tokens or row.written_tokens
            fits = counted + output <= THRESHOLD
            scores.error.append(abs(estimate.prompt_tokens / counted - 1))
            scores.misrouted.append(
                fits != (estimate.prompt_tokens + output <= THRESHOLD)
            )
            scores.above.append(counted > estimate.bound_tokens)
            scores.needless.append(
                fits and estimate.bound_tokens + reserved > THRESHOLD
            )
        estimator.observe("m", row.category, row.features, counted)
        if row.max_tokens is None:
            allowance.observe("m", row.category, row.written_tokens, truncated=False)
    return scores


def fit_prior(rows: Sequence[Row], families: Sequence[str]) -> Prior:
    """Fit the prior on some requests and families."""
    terms = np.array([vectorize(row.features) for row in rows])
    tokens = np.array([[row.tokens[f] for f in families] for row in rows], float)
    return from_coefficients(fit(terms, tokens))


def cross_validate(rows: Sequence[Row], family: str) -> tuple[Scores, Scores]:
    """Replay each part with a prior of the other parts and families."""
    others = [f for f in FAMILIES if f != family]
    settled, cold = Scores(), Scores()
    for part in range(PARTS):
        prior = fit_prior([row for row in rows if row.part != part], others)
        held_out = [row for row in rows if row.part == part]
        settled.extend(replay(held_out, family, prior, 0.01, len(held_out) // 10))
        cold.extend(replay(held_out[:COLD], family, prior, 0.01, 0))
    return settled, cold


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpora", type=Path)
    rows = read_rows(parser.parse_args().corpora)
    unscored = len(rows) // 10
    print("| | error | misrouted | above | needless | held out: error | misrouted "
          "| above | needless | first 50 |")  # fmt: skip
    print("|---|" + "---|" * 9)
    for family in FAMILIES:
        shipped = replay(rows, family, known_families(), 0.01, unscored).percent()
        settled, cold = cross_validate(rows, family)
        figures = [*shipped, *settled.percent(), cold.percent()[0]]
        print(f"| {family} | " + " | ".join(f"{x:.2f}" for x in figures) + " |")
    print("\n| rate % | above % | needlessly long % |\n|---|---|---|")
    for rate in RATES:
        replays = [
            replay(rows, family, known_families(), rate, unscored).percent()
            for family in FAMILIES
        ]
        _, _, above, needless = np.mean(replays, axis=0)
        print(f"| {100 * rate:g} | {above:.2f} | {needless:.2f} |")


if __name__ == "__main__":
    main()
