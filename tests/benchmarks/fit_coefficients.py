"""Fit the coefficients that every served model starts from; print their module.

    python tests/benchmarks/fit_coefficients.py CORPORA > extproc/routing/coefficients.py

CORPORA is a directory of ``*.jsonl.gz``, one request a line, with ``messages``,
``tools`` and ``tokens``: prompt tokens by tokenizer family, template and tools
included.

Model: ``tokens = x . w_f`` for family f, with relative noise; ``w_f ~ N(m, s^2)`` and
``m ~ N(m0, s0^2)`` per term, solved exactly for ``m`` and then each ``w_f`` (the mode
of a hierarchical Gaussian model). ``m0`` is a quarter of a token a pair of bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extproc.exchange.body_parser import parse_request
from extproc.routing.features import measure
from extproc.routing.prior import FAMILIES, relative_variance
from extproc.routing.regressors import TERMS, vectorize
from extproc.routing.request import Request

Matrix = npt.NDArray[np.float64]

# Deviation of the common mean from m0, and of a family from that mean, in tokens.
_SCALARS = {
    "template": (5.0, 20.0, 20.0),
    "message": (4.0, 5.0, 3.0),
    "tools": (20.0, 50.0, 50.0),
    "tool": (10.0, 20.0, 20.0),
}
_TOOLS = (0.25, 0.2, 0.1)
_TEXT = (0.25, 0.2, 0.2)


def read_corpora(corpora: Path) -> Iterator[dict[str, Any]]:
    """Yield the requests of a corpora directory."""
    for path in sorted(corpora.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def vectorize_request(row: dict[str, Any]) -> Matrix:
    """Return the terms of one corpus line."""
    body = {key: row[key] for key in ("messages", "tools") if row.get(key)}
    request = parse_request("/v1/chat/completions", json.dumps(body).encode())
    assert isinstance(request, Request), row["id"]
    return vectorize(measure(request.prompt, request.body_bytes))


def fit(terms: Matrix, tokens: Matrix) -> Matrix:
    """Return one row of coefficients per column of ``tokens``."""
    rows = [
        _SCALARS.get(name, _TOOLS if name.startswith("tools ") else _TEXT)
        for name in TERMS
    ]
    start, mean_spread, spread = np.array(rows).T
    inner = 1 / spread**2
    outer = 1 / mean_spread**2
    system = np.diag(len(tokens.T) * inner + outer)
    target = outer * start
    solved: list[tuple[Matrix, Matrix]] = []
    for counted in tokens.T:
        weights = 1 / (np.array([relative_variance(n) for n in counted]) * counted**2)
        weighted = terms * weights[:, None]
        inverse = np.linalg.inv(terms.T @ weighted + np.diag(inner))
        moment = weighted.T @ counted
        solved.append((inverse, moment))
        system -= inner[:, None] * inverse * inner
        target = target + inner * (inverse @ moment)
    mean = np.linalg.solve(system, target)
    return np.array([inverse @ (moment + inner * mean) for inverse, moment in solved])


def format_module(coefficients: Matrix, sources: Sequence[str], count: int) -> str:
    """Return the text of ``extproc/routing/coefficients.py``."""
    rows = np.rint(1000 * coefficients).astype(int).T.tolist()
    table = "\n".join(
        f'    "{name}": ({", ".join(map(str, row))}),'
        for name, row in zip(TERMS, rows, strict=True)
    )
    families = ", ".join(f'"{family}"' for family in FAMILIES)
    return f'''"""Thousandths of a prompt token that each term takes, by tokenizer family.

Fitted by ``tests/benchmarks/fit_coefficients.py`` on {count:,} chat requests composed
of public texts, counted with the published vocabularies and chat templates of Llama
3.1, Mistral Tekken (V3 template), Qwen 3, OpenAI o200k, DeepSeek V3 and Gemma 3. Terms
overlap (a Han character counts under "han" and under what it follows), so a single row
is no price of its own. Texts:

{_wrap(sources)}
"""

FAMILIES = ({families})
"""What the columns are, left to right."""

# fmt: off
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


def main() -> None:
    """Read, fit, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpora", type=Path)
    rows = list(read_corpora(parser.parse_args().corpora))
    terms = np.array([vectorize_request(row) for row in rows])
    tokens = np.array([[row["tokens"][f] for f in FAMILIES] for row in rows], float)
    sources = sorted({row["source"].partition(":")[0] for row in rows} - {"synthetic"})
    print(format_module(fit(terms, tokens), sources, len(rows)), end="")


if __name__ == "__main__":
    main()
