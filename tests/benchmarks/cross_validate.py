"""Accuracy of the default estimator on tokenizers and sources outside its prior.

    python tests/benchmarks/cross_validate.py CORPORA [MORE...] [--counts FILE]
        [--family NAME]...

CORPORA, MORE and FILE are the same as for ``fit_coefficients.py``, and the prior is
fitted on all of them. The sources of CORPORA are split into five parts; each language
of a source counts as a separate source. For each part and tokenizer family, the prior
is fitted without the part and without the family. The part's requests are then
replayed: the estimator estimates each request and then learns from it. The program
prints up to three tables.

The table "families" has one row for each family. It shows, in percent, the mean
relative error, point misroutes at 8,192 tokens, requests above their bound, and
requests sent to the long pool needlessly. These columns appear twice: for CORPORA with
the shipped prior, and for the parts, each with its own prior. The first tenth of a
replay is not scored. The last columns show the error on the first 50 requests, again
for CORPORA with the shipped prior and for the parts.

The table "kinds" needs MORE. The kinds of text in MORE are split into two halves. Each
half is replayed with a prior that is fitted without this half and without the family.
The table shows the kinds with the largest errors: the mean error, the bias, the share
above the bound, the share above the bound before anything was learned, and the mean
error of the first request and of the later requests of a kind.

The table "risk" shows the cost of each risk rate with the shipped prior.
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
from fit_coefficients import add_arguments, fit, read_corpora

from extproc.exchange.body_parser import parse_request
from extproc.routing.allowance import OutputAllowance
from extproc.routing.bound import Bounded
from extproc.routing.category import classify
from extproc.routing.features import Features, measure
from extproc.routing.prior import FAMILIES, Prior, from_coefficients, known_families
from extproc.routing.regression import TextEstimator
from extproc.routing.regressors import TERMS
from extproc.routing.request import Request
from extproc.routing.risk import Margin

THRESHOLD = 8192
PARTS = 5
COLD = 50
KINDS_SHOWN = 20
RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Row:
    """One request of the corpora."""

    features: Features
    category: str
    max_tokens: int | None
    written_tokens: int
    tokens: dict[str, int]
    kind: str
    part: int


@dataclass
class Scores:
    """One row of figures for each scored request."""

    error: list[float] = field(default_factory=list)
    misrouted: list[bool] = field(default_factory=list)
    above: list[bool] = field(default_factory=list)
    needless: list[bool] = field(default_factory=list)

    def percent(self) -> list[float]:
        """Return the mean of each column, in percent."""
        columns = (self.error, self.misrouted, self.above, self.needless)
        return [100 * float(np.mean(column)) for column in columns]

    def extend(self, other: Scores) -> None:
        """Append the rows of another replay."""
        self.error += other.error
        self.misrouted += other.misrouted
        self.above += other.above
        self.needless += other.needless


def read_rows(corpora: Sequence[Path], counts: Path | None) -> list[Row]:
    """Read and shuffle the requests, and draw the output length of each."""
    rng = random.Random(1)
    rows = [_read_row(raw, rng) for raw in read_corpora(corpora, counts)]
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
        raw["category"],
        zlib.crc32(source.encode()) % PARTS,
    )


def replay(
    rows: Sequence[Row], family: str, prior: Prior, rate: float, unscored: int
) -> Scores:
    """Estimate each request and then learn from it."""
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
    terms = np.array([row.features.terms[: len(TERMS)] for row in rows])
    tokens = np.array([[row.tokens[f] for f in families] for row in rows], float)
    return from_coefficients(fit(terms, tokens))


SAME_VOCABULARY = frozenset({"o200k", "gptoss"})


def others(family: str) -> list[str]:
    """Return the families whose vocabulary is unrelated to that of a family."""
    left_out = SAME_VOCABULARY if family in SAME_VOCABULARY else {family}
    return [name for name in FAMILIES if name not in left_out]


def cross_validate(
    rows: Sequence[Row], more: Sequence[Row], family: str
) -> tuple[Scores, Scores]:
    """Replay each part with a prior fitted on the other parts and families."""
    settled, cold = Scores(), Scores()
    for part in range(PARTS):
        kept = [row for row in rows if row.part != part]
        prior = fit_prior([*kept, *more], others(family))
        held_out = [row for row in rows if row.part == part]
        settled.extend(replay(held_out, family, prior, 0.01, len(held_out) // 10))
        cold.extend(replay(held_out[:COLD], family, prior, 0.01, 0))
    return settled, cold


@dataclass
class KindScores:
    """Relative errors of the requests of one kind of text, and which are above."""

    first: list[float] = field(default_factory=list)
    """Error of the first request of the kind, for each family."""
    later: list[float] = field(default_factory=list)
    above: list[bool] = field(default_factory=list)
    above_first: list[bool] = field(default_factory=list)
    """Whether a request is above its bound before anything was learned."""

    def percent(self) -> list[float]:
        """Return the columns of the table "kinds", in percent."""
        errors = np.array([*self.first, *self.later])
        first, later = np.abs(self.first), np.abs(self.later or [math.nan])
        above, above_first = np.array(self.above), np.array(self.above_first)
        columns = (np.abs(errors), errors, above, above_first, first, later)
        return [100 * float(np.mean(column)) for column in columns]


def score_kinds(
    rows: Sequence[Row], more: Sequence[Row], families: Sequence[str]
) -> dict[str, KindScores]:
    """Replay each half of the kinds with a prior fitted without it."""
    kinds: dict[str, KindScores] = {}
    for half in range(2):
        held_out = [row for row in more if zlib.crc32(row.kind.encode()) % 2 == half]
        kept = [row for row in more if zlib.crc32(row.kind.encode()) % 2 != half]
        for family in families:
            prior = fit_prior([*rows, *kept], others(family))
            estimator = Bounded(TextEstimator(prior), Margin())
            unlearned = Bounded(TextEstimator(prior), Margin())
            seen: set[str] = set()
            for row in held_out:
                counted = row.tokens[family]
                estimate = estimator.estimate("m", row.category, row.features)
                scores = kinds.setdefault(row.kind, KindScores())
                errors = scores.later if row.kind in seen else scores.first
                errors.append(estimate.prompt_tokens / counted - 1)
                scores.above.append(counted > estimate.bound_tokens)
                estimate = unlearned.estimate("m", row.category, row.features)
                scores.above_first.append(counted > estimate.bound_tokens)
                estimator.observe("m", row.category, row.features, counted)
                seen.add(row.kind)
    return kinds


def print_kinds(kinds: dict[str, KindScores]) -> None:
    """Print the kinds with the largest errors, and the means over all kinds."""
    percents = {kind: scores.percent() for kind, scores in kinds.items()}
    weak = sorted(percents, key=lambda kind: -percents[kind][0])
    print("\n| kind | error % | bias % | above % | above at first % | first error % | "
          "later error % |\n|---|" + "---|" * 6)  # fmt: skip
    means = np.nanmean([*percents.values()], axis=0).tolist()
    rows = [(kind, percents[kind]) for kind in weak[:KINDS_SHOWN]]
    for kind, figures in [*rows, (f"all {len(weak)}", means)]:
        print(f"| {kind} | " + " | ".join(f"{x:.1f}" for x in figures) + " |")


def main() -> None:
    """Measure all cases and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--family", action="append", choices=FAMILIES, metavar="NAME")
    args = parser.parse_args()
    families = args.family or list(FAMILIES)
    rows = read_rows(args.corpora[:1], args.counts)
    more = read_rows(args.corpora[1:], args.counts)
    unscored = len(rows) // 10
    print("| | error | misrouted | above | needless | first 50 | held out: error | "
          "misrouted | above | needless | first 50 |")  # fmt: skip
    print("|---|" + "---|" * 10)
    for family in families:
        prior = known_families()
        shipped = replay(rows, family, prior, 0.01, unscored).percent()
        first = replay(rows[:COLD], family, prior, 0.01, 0).percent()[0]
        settled, cold = cross_validate(rows, more, family)
        figures = [*shipped, first, *settled.percent(), cold.percent()[0]]
        line = " | ".join(f"{x:.2f}" for x in figures)
        print(f"| {family} | {line} |", flush=True)
    if more:
        print_kinds(score_kinds(rows, more, families))
    print("\n| rate % | above % | needlessly long % |\n|---|---|---|")
    for rate in RATES:
        replays = [
            replay(rows, family, known_families(), rate, unscored).percent()
            for family in families
        ]
        _, _, above, needless = np.mean(replays, axis=0)
        print(f"| {100 * rate:g} | {above:.2f} | {needless:.2f} |")


if __name__ == "__main__":
    main()
