"""Fit the initial coefficients of every model, and print them as a Python module.

    python tests/benchmarks/fit_coefficients.py CORPORA... [--counts FILE] \\
        > extproc/routing/coefficients.py

CORPORA are directories of ``*.jsonl.gz`` with one request per line: ``messages``,
``tools`` and ``tokens``. ``tokens`` is the number of prompt tokens by tokenizer family,
including template and tools. FILE has further counts, ``{id: {family: tokens}}`` in
gzipped JSON.

The model is ``tokens = x . w_f`` for family f, with relative noise. Per term, ``w_f ~
N(m, s^2)`` and ``m ~ N(m0, s0^2)``. The program solves exactly for ``m`` and then for
each ``w_f``. The result is the mode of a hierarchical Gaussian model. ``m0`` is a
quarter of a token per pair of bytes. If coefficients of scripts are negative, they are
set to zero and the other coefficients are solved again. With a negative coefficient,
the initial estimate for text in that script would be almost zero.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extproc.exchange.body_parser import parse_request
from extproc.routing.features import measure
from extproc.routing.prior import FAMILIES, relative_variance
from extproc.routing.regressors import SCRIPT_TERMS, TERMS
from extproc.routing.request import Request

Matrix = npt.NDArray[np.float64]

# For each term, in tokens: m0, the standard deviation of the common mean from m0, and
# the standard deviation of a family from the common mean.
_SCALARS = {
    "template": (5.0, 20.0, 20.0),
    "message": (4.0, 5.0, 3.0),
    "tools": (20.0, 50.0, 50.0),
    "tool": (10.0, 20.0, 20.0),
}
_DERIVED = {
    "repetition": (0.0, 1.0, 0.5),
    "foreign letter": (0.0, 0.2, 0.1),
    "foreign word": (0.0, 0.2, 0.1),
}
_RUN = (0.1, 0.2, 0.1)
_TOOLS = (0.25, 0.2, 0.1)
_TEXT = (0.25, 0.2, 0.2)


def read_corpora(
    corpora: Sequence[Path], counts: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield those requests of corpora directories that have counts of every family."""
    further: dict[str, dict[str, int]] = {}
    if counts is not None:
        with gzip.open(counts, "rt", encoding="utf-8") as file:
            further = json.load(file)
    for directory in corpora:
        for path in sorted(directory.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    row["tokens"] |= further.get(row["id"], {})
                    if set(FAMILIES) <= row["tokens"].keys():
                        yield row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options for the corpora."""
    parser.add_argument("corpora", type=Path, nargs="+", metavar="CORPORA")
    parser.add_argument("--counts", type=Path, metavar="FILE")


def vectorize_request(row: dict[str, Any]) -> Matrix:
    """Return the terms of one corpus line."""
    body = {key: row[key] for key in ("messages", "tools") if row.get(key)}
    request = parse_request("/v1/chat/completions", json.dumps(body).encode())
    assert isinstance(request, Request), row["id"]
    return measure(request.prompt, request.body_bytes).terms[: len(TERMS)]


def _scales_of(term: str) -> tuple[float, float, float]:
    if term.startswith("tools "):
        return _TOOLS
    if term.startswith("run of "):
        return _RUN
    return {**_SCALARS, **_DERIVED}.get(term, _TEXT)


def fit(terms: Matrix, tokens: Matrix) -> Matrix:
    """Return one row of coefficients for each column of ``tokens``."""
    start, mean_spread, spread = np.array([_scales_of(name) for name in TERMS]).T
    inner = 1 / spread**2
    outer = 1 / mean_spread**2
    system = np.diag(len(tokens.T) * inner + outer)
    target = outer * start
    solved: list[tuple[Matrix, Matrix]] = []
    for counted in tokens.T:
        weights = 1 / (np.array([relative_variance(n) for n in counted]) * counted**2)
        weighted = terms * weights[:, None]
        precision = terms.T @ weighted + np.diag(inner)
        inverse = np.linalg.inv(precision)
        moment = weighted.T @ counted
        solved.append((precision, moment))
        system -= inner[:, None] * inverse * inner
        target = target + inner * (inverse @ moment)
    mean = np.linalg.solve(system, target)
    return np.array(
        [
            _solve_not_negative(precision, moment + inner * mean)
            for precision, moment in solved
        ]
    )


_SCRIPTS = np.array([name in SCRIPT_TERMS for name in TERMS])


def _solve_not_negative(precision: Matrix, moment: Matrix) -> Matrix:
    """Solve for the coefficients, with those of scripts at least zero."""
    free = np.ones(len(TERMS), dtype=bool)
    while True:
        coefficients = np.zeros(len(TERMS))
        coefficients[free] = np.linalg.solve(
            precision[np.ix_(free, free)], moment[free]
        )
        negative = _SCRIPTS & (coefficients < 0.0)
        if not negative.any():
            return coefficients
        free[np.argmin(np.where(negative, coefficients, np.inf))] = False


def format_module(coefficients: Matrix, sources: Sequence[str], count: int) -> str:
    """Return the text of ``extproc/routing/coefficients.py``."""
    rows = np.rint(1000 * coefficients).astype(int).T.tolist()
    table = "\n".join(
        f'    "{name}": ({", ".join(map(str, row))}),'
        for name, row in zip(TERMS, rows, strict=True)
    )
    families = "\n".join(f'    "{family}",' for family in FAMILIES)
    return f'''"""Coefficients: thousandths of a prompt token per term, by tokenizer family.

Fitted by ``tests/benchmarks/fit_coefficients.py`` on {count:,} chat requests composed
from public texts in about 200 kinds, languages and formats, counted with the published
vocabularies and chat templates of Llama 3.1, Mistral Tekken (V3 template), Qwen 3,
OpenAI o200k, DeepSeek V3, Gemma 3, Kimi K2, Phi-4, Llama 2, GPT-NeoX (50K), gpt-oss
and GLM-4.5. Terms overlap (a Han character counts under "han" and under the class that
it follows), so a row alone is not the price of its term. Texts:

{_wrap(sources)}
"""

FAMILIES = (
{families}
)
"""The families, in the order of the columns."""

# fmt: off
# ruff: noqa: E501
MILLITOKENS: dict[str, tuple[int, ...]] = {{
{table}
}}
# fmt: on
'''


def _wrap(sources: Sequence[str], width: int = 86) -> str:
    lines = [""]
    for source in sources:
        if len(lines[-1]) + len(source) + 2 > width:
            lines.append("")
        lines[-1] += source + ", "
    return "\n".join(line.rstrip() for line in lines).rstrip(",") + "."


def _source_names(source: str) -> list[str]:
    """Return a request's repository, or its packages from Debian, npm and PyPI."""
    repository = source.partition(":")[0]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return [repository]
    packages = re.findall(r"\b(deb|npm|pypi) ([@\w.+/-]+)", source)
    by_language = re.compile("^(libreoffice-(?:help|l10n))-.*")
    return [
        " ".join([registry, by_language.sub(r"\1-*", name)])
        for registry, name in packages
    ]


def main() -> None:
    """Read the corpora, fit the coefficients and print the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    args = parser.parse_args()
    rows = list(read_corpora(args.corpora, args.counts))
    terms = np.array([vectorize_request(row) for row in rows])
    tokens = np.array([[row["tokens"][f] for f in FAMILIES] for row in rows], float)
    sources = sorted({name for row in rows for name in _source_names(row["source"])})
    print(format_module(fit(terms, tokens), sources, len(rows)), end="")


if __name__ == "__main__":
    main()
