"""The distribution of a served model's coefficients before its first answer.

A normal distribution over the coefficients of ``regressors.TERMS``: the mean of twelve
known tokenizer families, and a covariance that is wide along the directions in which
they differ (digit splitting, each script, the template) and narrow elsewhere. The first
counted prompts shift the distribution to the families that explain them best. A few
dozen prompts locate an unknown tokenizer among the known tokenizers or outside them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from extproc.routing.arithmetic import family_variance
from extproc.routing.arrays import Matrix, Vector
from extproc.routing.coefficients import FAMILIES, MILLITOKENS
from extproc.routing.regressors import SCRIPT_TERMS, TERMS

__all__ = [
    "FAMILIES",
    "Prior",
    "from_coefficients",
    "known_families",
    "make_prior",
    "relative_variance",
]

# Standard deviation, in tokens, of a family's coefficient outside the span of the known
# families. These values are for learning: they are wide, so that counts soon outweigh
# the prior, and were chosen by leaving families and sources out of the fit.
_LEARNING_SPREADS = {
    "template": 10.0,
    "message": 2.0,
    "tools": 20.0,
    "tool": 5.0,
    "repetition": 0.5,
    "foreign letter": 0.1,
    "foreign word": 0.1,
}
_TOOLS_LEARNING_SPREAD = 0.1
_RUN_SPREAD = 0.1
_TEXT_LEARNING_SPREAD = 0.4

# The same deviations for prediction. For the most frequent terms (letters, words,
# indentation, the text of tools) they are only as wide as tests with one family left
# out require, because a long prompt multiplies them. Text unlike English has separate
# terms with wide deviations.
_PREDICTION_SPREADS = {
    **_LEARNING_SPREADS,
    "tools letter": 0.02,
    "tools word": 0.06,
    "tools space": 0.05,
    "space after lower": 0.07,
    "space after space": 0.02,
    "foreign letter": 0.06,
}
_LETTER_SPREAD = 0.03
_WORD_SPREAD = 0.07
_TOOLS_SPREAD = 0.1
_ASCII_SPREAD = 0.14
_SCRIPT_SPREAD = 0.3

# Variance of a prompt's tokens around the best linear model, from the standard
# deviation: 3 % on long prompts, and 0.55 times the square root of the tokens on short
# prompts, measured on six families.
_LONG_VARIANCE = 0.03**2
_SHORT_VARIANCE = 0.3


def relative_variance(prompt_tokens: float) -> float:
    """Return the variance of (counted - modeled) / counted for a prompt size."""
    return _LONG_VARIANCE + _SHORT_VARIANCE / prompt_tokens


# The evidence for a family assumes normal relative errors, with this standard deviation
# in addition to the noise, since a linear model of a known family is not exact. The
# logarithm of the evidence is halved, since errors in one kind of text are correlated.
# It is also limited per prompt, so that one false count cannot decide.
_FAMILY_SPREAD = 0.1
_EVIDENCE_SHARE = 0.5
_MOST_EVIDENCE = 9.0
# Minimum weight of a family, whatever the evidence, because the true family may be
# unknown.
_LEAST_WEIGHT = 0.02


@dataclass(frozen=True, slots=True)
class Families:
    """Coefficients of the known tokenizer families."""

    coefficients: Matrix
    """Tokens per term, one row for each of two or more families."""
    learning_variances: Vector
    """Variance of an unknown family's coefficients around the span of the coefficients
    above, for use in learning."""
    variances: Vector
    """The same variance for prediction."""

    def least_variance(self, x: Vector, most: float) -> float:
        """Return the variance of an unknown family's ``x . w``, at most ``most``."""
        return family_variance(self.coefficients, self.variances, x, most)

    def evidence(self, x: Matrix, prompt_tokens: Vector) -> Matrix:
        """Return the log-likelihood of counted prompts under each family.

        One row for each prompt, both in ``x`` and in the result.
        """
        explained = np.maximum(x @ self.coefficients.T, 1.0)
        errors = np.log(prompt_tokens[:, None] / explained)
        noise = _LONG_VARIANCE + _SHORT_VARIANCE / prompt_tokens
        variance = noise[:, None] + _FAMILY_SPREAD**2
        logarithms = -0.5 * np.minimum(errors * errors / variance, _MOST_EVIDENCE)
        evidence: Matrix = _EVIDENCE_SHARE * logarithms
        return evidence

    def weights(self, evidence: Vector) -> Vector:
        """Return the share of each family, given the sum of the evidence."""
        likely: Vector = np.exp(evidence - evidence.max()) + _LEAST_WEIGHT
        weights: Vector = likely / likely.sum()
        return weights

    def mixture(self, weights: Vector) -> Prior:
        """Return the normal distribution with the mixture's mean and covariance."""
        mean, roots = self._between(weights)
        covariance = roots.T @ roots + np.diag(self.learning_variances)
        return make_prior(mean, covariance, self)

    def mean_and_precision(self, weights: Vector) -> tuple[Vector, Matrix]:
        """Return the mixture's mean and the inverse of its covariance.

        The covariance is a diagonal matrix plus a product of matrices with one row per
        family, so only a matrix with as many rows needs inversion (Woodbury's identity;
        Golub and Van Loan, Matrix Computations, section 2.1.4).
        """
        mean, roots = self._between(weights)
        scaled = roots / self.learning_variances
        inner = np.linalg.inv(np.eye(len(weights)) + scaled @ roots.T)
        precision: Matrix = -(scaled.T @ inner) @ scaled
        precision[np.diag_indices_from(precision)] += 1.0 / self.learning_variances
        return mean, precision

    def _between(self, weights: Vector) -> tuple[Vector, Matrix]:
        """Return the families' mean, and rows whose product is their covariance."""
        mean: Vector = weights @ self.coefficients
        share = weights * (len(weights) / (len(weights) - 1))
        return mean, np.sqrt(share)[:, None] * (self.coefficients - mean)


@dataclass(frozen=True, slots=True)
class Prior:
    """A normal distribution over coefficients, in tokens per term."""

    mean: Vector
    covariance: Matrix
    precision: Matrix
    """The inverse of ``covariance``."""
    families: Families | None = None
    """The families that compose the distribution, to be weighted by evidence."""


def known_families(leave_out: Collection[str] = ()) -> Prior:
    """Return the prior from the known tokenizer families.

    Args:
        leave_out: families to exclude, so that the error for an unknown family can be
            measured.

    Raises:
        ValueError: a name that is not in ``FAMILIES``, or fewer than two remaining
            families.
    """
    unknown = set(leave_out) - set(FAMILIES)
    if unknown:
        names = f"expected names among {list(FAMILIES)}"
        raise ValueError(f"leave_out: {sorted(unknown)}; {names}")
    kept = [i for i, family in enumerate(FAMILIES) if family not in leave_out]
    if len(kept) < 2:
        raise ValueError(f"leave_out: {len(kept)} families left; expected at least 2")
    coefficients = np.array([MILLITOKENS[name] for name in TERMS], dtype=float).T / 1000
    return from_coefficients(coefficients[kept])


def from_coefficients(coefficients: Matrix) -> Prior:
    """Return the prior from tokenizer families.

    Args:
        coefficients: tokens per term, one row for each of two or more families.
    """
    families = Families(
        np.ascontiguousarray(coefficients),
        np.array([_learning_spread(name) ** 2 for name in TERMS]),
        np.array([_prediction_spread(name) ** 2 for name in TERMS]),
    )
    return families.mixture(families.weights(np.zeros(len(coefficients))))


def make_prior(
    mean: Vector, covariance: Matrix, families: Families | None = None
) -> Prior:
    """Return a prior with its precision computed."""
    precision: Matrix = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return Prior(mean, covariance, precision, families)


def _learning_spread(term: str) -> float:
    if term.startswith("tools "):
        return _TOOLS_LEARNING_SPREAD
    if term.startswith("run of "):
        return _RUN_SPREAD
    return _LEARNING_SPREADS.get(term, _TEXT_LEARNING_SPREAD)


def _prediction_spread(term: str) -> float:
    if term in _PREDICTION_SPREADS:
        return _PREDICTION_SPREADS[term]
    if term.startswith("tools "):
        return _TOOLS_SPREAD
    if term.startswith("run of "):
        return _RUN_SPREAD
    if term in SCRIPT_TERMS:
        return _SCRIPT_SPREAD
    if term.startswith("lower"):
        if term.endswith(" after space"):
            return _WORD_SPREAD
        if " after lower" in term:
            return _LETTER_SPREAD
    return _ASCII_SPREAD
