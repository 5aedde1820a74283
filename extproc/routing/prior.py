"""The distribution of a served model's coefficients before its first answer.

A normal distribution over the coefficients of ``regressors.TERMS``: the mean of six
known tokenizer families, and a covariance that is wide along the directions in which
they differ (digit splitting, each script, the template) and narrow elsewhere. A few
dozen counted prompts then suffice to place an unknown tokenizer among, or beyond, the
known ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from extproc.routing.arrays import Matrix, Vector
from extproc.routing.coefficients import FAMILIES, MILLITOKENS
from extproc.routing.regressors import TERMS

__all__ = [
    "FAMILIES",
    "Prior",
    "from_coefficients",
    "known_families",
    "make_prior",
    "relative_variance",
]

# Standard deviation, in tokens, of a family's coefficient beyond what the known ones
# span: chosen by leaving whole families and sources out of the fit.
_SCALAR_SPREADS = {"template": 10.0, "message": 2.0, "tools": 30.0, "tool": 10.0}
_TOOLS_SPREAD = 0.1
_TEXT_SPREAD = 0.2

# Relative variance of a prompt's tokens about the best linear model: 3 % on long
# prompts and 0.55 of a square root of tokens on short ones, measured on six families.
_LONG_VARIANCE = 0.03**2
_SHORT_VARIANCE = 0.3


def relative_variance(prompt_tokens: float) -> float:
    """Return the variance of (counted - modelled) / counted at a prompt size."""
    return _LONG_VARIANCE + _SHORT_VARIANCE / prompt_tokens


@dataclass(frozen=True, slots=True)
class Prior:
    """A normal distribution over coefficients, in tokens a term."""

    mean: Vector
    covariance: Matrix
    precision: Matrix
    """The inverse of ``covariance``."""


def known_families(leave_out: Collection[str] = ()) -> Prior:
    """Return the prior that the known tokenizer families give.

    Args:
        leave_out: families to do without, to measure what an unknown one meets.

    Raises:
        ValueError: a name that is not in ``FAMILIES``, or fewer than two families left.
    """
    unknown = set(leave_out) - set(FAMILIES)
    if unknown:
        raise ValueError(f"no families {sorted(unknown)}; there are {list(FAMILIES)}")
    kept = [i for i, family in enumerate(FAMILIES) if family not in leave_out]
    if len(kept) < 2:
        raise ValueError("at least two families must remain")
    coefficients = np.array([MILLITOKENS[name] for name in TERMS], dtype=float).T / 1000
    return from_coefficients(coefficients[kept])


def from_coefficients(coefficients: Matrix) -> Prior:
    """Return the prior that tokenizer families give.

    Args:
        coefficients: one row of tokens a term for each of two or more families.
    """
    mean = coefficients.mean(axis=0)
    apart = coefficients - mean
    spreads = np.array([_spread(name) for name in TERMS])
    between = apart.T @ apart / (len(coefficients) - 1)
    return make_prior(mean, between + np.diag(spreads**2))


def make_prior(mean: Vector, covariance: Matrix) -> Prior:
    """Return a prior, its precision computed."""
    precision: Matrix = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return Prior(mean, covariance, precision)


def _spread(term: str) -> float:
    default = _TOOLS_SPREAD if term.startswith("tools ") else _TEXT_SPREAD
    return _SCALAR_SPREADS.get(term, default)
