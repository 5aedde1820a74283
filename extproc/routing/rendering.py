"""Text that a chat template may leave out, and the share that each model renders.

A template drops the reasoning of earlier turns, keeps all of it, or keeps only the
latest. Some templates render ``documents``, and an undocumented field may be rendered
too. For each kind of such text, each served model has a share near 0 or 1, which is
learned together with the coefficients of the text. The rendered tokens of a kind are
the tokens that the model's own coefficients give for its text, times the share.
"""

from __future__ import annotations

import numpy as np

from extproc.routing.arrays import Vector
from extproc.routing.features import Features
from extproc.routing.prior import Families, Prior
from extproc.routing.request import OptionalKind

_SHARE = 0.5
_SHARE_SPREAD = 0.4
"""Standard deviation of a share: 0 and 1 are each about 1.5 standard deviations from
the mean."""


def with_shares(prior: Prior) -> Prior:
    """Append the shares to a prior of text coefficients, as independent terms."""
    size, shares = len(prior.mean), len(OptionalKind)
    families = prior.families
    if families is not None:
        means = np.full((len(families.coefficients), shares), _SHARE)
        variances = np.full(shares, _SHARE_SPREAD**2)
        with_means = Families(
            np.hstack([families.coefficients, means]),
            np.append(families.learning_variances, variances),
            np.append(families.variances, variances),
        )
        return with_means.mixture(families.weights(np.zeros(len(means))))
    covariance = np.zeros((size + shares, size + shares))
    covariance[:size, :size] = prior.covariance
    precision = np.zeros_like(covariance)
    precision[:size, :size] = prior.precision
    at = np.arange(size, size + shares)
    covariance[at, at] = _SHARE_SPREAD**2
    precision[at, at] = 1 / _SHARE_SPREAD**2
    mean: Vector = np.append(prior.mean, np.full(shares, _SHARE))
    return Prior(mean, covariance, precision)


def optional_tokens(features: Features, coefficients: Vector) -> Vector:
    """Return the tokens of each kind of optional text if all of it were rendered.

    Args:
        features: features of a prompt.
        coefficients: a model's tokens for each of ``regressors.VECTOR_TERMS``.
    """
    tokens = np.zeros(len(OptionalKind))
    for part in features.optional:
        tokens[part.kind] = max(0.0, float(part.terms @ coefficients))
    return tokens
