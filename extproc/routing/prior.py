"""The distribution of a served model's coefficients before its first answer.

A normal distribution over the coefficients of ``regressors.TERMS``: the mean of
twelve known tokenizer families, and a covariance that is wide along the directions in
which they differ (digit splitting, each script, the template) and narrow elsewhere. The
first counted prompts shift it to the families that explain them best; a few dozen place
an unknown tokenizer among, or beyond, them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

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

# Standard deviation, in tokens, of a family's coefficient beyond the span of the known
# ones, to learn with: wide, so that the counts soon outweigh the prior. Chosen by
# leaving families and sources out of the fit.
_LEARNING_SPREADS = {
    "template": 10.0,
    "message": 2.0,
    "tools": 20.0,
    "tool": 5.0,
    "repetition": 0.5,
    "run": 0.1,
    "foreign letter": 0.1,
    "foreign word": 0.1,
}
_TOOLS_LEARNING_SPREAD = 0.1
_TEXT_LEARNING_SPREAD = 0.4

# The same deviation to predict with, as narrow as leaving families out shows it to be.
# A long prompt multiplies the spread of its commonest terms: letters, words,
# indentation, the text of tools. Text unlike English has wide terms of its own.
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

# Relative variance of a prompt's tokens about the best linear model: 3 % on long
# prompts and 0.55 of a square root of tokens on short ones, measured on six families.
_LONG_VARIANCE = 0.03**2
_SHORT_VARIANCE = 0.3


def relative_variance(prompt_tokens: float) -> float:
    """Return the variance of (counted - modelled) / counted at a prompt size."""
    return _LONG_VARIANCE + _SHORT_VARIANCE / prompt_tokens


# The evidence for a family is that of normal relative errors, with this standard
# deviation beside the noise for what a linear model of a known family lacks. Its
# logarithm is halved, since the errors of one kind of text are alike, and one prompt is
# worth at most so much: a false count must not decide.
_FAMILY_SPREAD = 0.1
_EVIDENCE_SHARE = 0.5
_MOST_EVIDENCE = 9.0
# Weight that a family keeps whatever the evidence: the true one may be none of them.
_LEAST_WEIGHT = 0.02


@dataclass(frozen=True, slots=True)
class Families:
    """Coefficients of the known tokenizer families."""

    coefficients: Matrix
    """A row of tokens a term for each of two or more families."""
    learning_variances: Vector
    """Of a further family's coefficients about the span of these, to learn with."""
    variances: Vector
    """The same, to predict with."""

    def least_variance(self, x: Vector, most: float) -> float:
        """Return the variance of an unknown family's ``x . w``, at most ``most``."""
        within = float(self.variances.dot(x * x))
        if within >= most:
            return most  # once much is learned: the families need not be looked at
        tokens = self.coefficients.dot(x)
        apart = tokens - float(tokens.sum()) / len(tokens)
        between = float(apart.dot(apart)) / (len(tokens) - 1)
        return min(most, within + between)

    def evidence(self, x: Matrix, prompt_tokens: Vector) -> Matrix:
        """Return the logarithm of how well each family explains counted prompts.

        A row for each prompt, in ``x`` as in what is returned.
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

        The covariance is a diagonal and a product of as many rows as there are
        families, so that only a matrix of their number need be inverted (Woodbury's
        identity; Golub and Van Loan, Matrix Computations, section 2.1.4).
        """
        mean, roots = self._between(weights)
        scaled = roots / self.learning_variances
        inner = np.linalg.inv(np.eye(len(weights)) + scaled @ roots.T)
        precision: Matrix = -(scaled.T @ inner) @ scaled
        precision[np.diag_indices_from(precision)] += 1.0 / self.learning_variances
        return mean, precision

    def _between(self, weights: Vector) -> tuple[Vector, Matrix]:
        """Return the mean, and rows whose product is the covariance of the families."""
        mean: Vector = weights @ self.coefficients
        share = weights * (len(weights) / (len(weights) - 1))
        return mean, np.sqrt(share)[:, None] * (self.coefficients - mean)


@dataclass(frozen=True, slots=True)
class Prior:
    """A normal distribution over coefficients, in tokens a term."""

    mean: Vector
    covariance: Matrix
    precision: Matrix
    """The inverse of ``covariance``."""
    families: Families | None = None
    """The families that it is made of, for those that the evidence favors."""


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
    families = Families(
        coefficients,
        np.array([_learning_spread(name) ** 2 for name in TERMS]),
        np.array([_prediction_spread(name) ** 2 for name in TERMS]),
    )
    return families.mixture(families.weights(np.zeros(len(coefficients))))


def make_prior(
    mean: Vector, covariance: Matrix, families: Families | None = None
) -> Prior:
    """Return a prior, its precision computed."""
    precision: Matrix = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return Prior(mean, covariance, precision, families)


def _learning_spread(term: str) -> float:
    tools = term.startswith("tools ")
    default = _TOOLS_LEARNING_SPREAD if tools else _TEXT_LEARNING_SPREAD
    return _LEARNING_SPREADS.get(term, default)


def _prediction_spread(term: str) -> float:
    if term in _PREDICTION_SPREADS:
        return _PREDICTION_SPREADS[term]
    if term.startswith("tools "):
        return _TOOLS_SPREAD
    if term in SCRIPT_TERMS:
        return _SCRIPT_SPREAD
    if term.startswith("lower"):
        if term.endswith(" after space"):
            return _WORD_SPREAD
        if " after lower" in term:
            return _LETTER_SPREAD
    return _ASCII_SPREAD
