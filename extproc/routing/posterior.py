"""Bayesian linear regression on decayed sums (Bishop, PRML 2006, section 3.3).

With prior N(m0, S0) over the coefficients and observations (x, y) of variance v:

    SN^-1 = S0^-1 + sum of x x' / v                (3.51)
    mN    = SN (S0^-1 m0 + sum of x y / v)         (3.50)
    variance of the mean's prediction = x' SN x    (3.59, without the noise)

Divergence: Bishop has one noise variance; here each observation has its own, and the
sums decay with each observation. The prior does not decay, which keeps SN positive
definite for any observations. A prior made of families is a mixture of the families
that the observations favor (empirical Bayes). The evidence for each family is a sum
too, so all state consists of sums, which can be added across processes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from extproc.routing.arithmetic import invert_positive, quadratic_form
from extproc.routing.arrays import Matrix, Vector
from extproc.routing.mergeable import DecayedSums
from extproc.routing.prior import Prior

Indices = npt.NDArray[np.int32]

# The posterior is solved again as soon as this share of its observations is new.
# Solving it takes two milliseconds, which is about 15 us per observation in the steady
# state.
_STALE_SHARE = 1 / 16
_SETTLED = 2048.0

_MOST_PENDING = 32
"""Maximum number of observations that are added to the sums at once."""


@cache
def _packing(size: int) -> tuple[Indices, Indices, Indices]:
    """Return the indices that pack and unpack a symmetric matrix, and its diagonal.

    The first array packs: the position of each element of the upper triangle in the
    flat matrix. The second unpacks: the position of each element of the flat matrix in
    the triangle. The third is the position of the diagonal in the triangle.
    """
    rows, columns = np.triu_indices(size)
    places = np.empty((size, size), dtype=np.int32)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    packed = (rows * size + columns).astype(np.int32)
    return packed, places, np.flatnonzero(rows == columns).astype(np.int32)


class Posterior:
    """The distribution of linear coefficients, given a prior and observations.

    Args:
        prior: the distribution before the first observation.
        memory: number of observations over which a sum decays to 1/e.
    """

    def __init__(self, prior: Prior, memory: float) -> None:
        size = len(prior.mean)
        self._keep = math.exp(-1.0 / memory)
        self._prior = prior
        self._families = prior.families
        count = 0 if self._families is None else len(self._families.coefficients)
        self._evidence_sum: Vector = np.zeros(count)
        self._mean = prior.mean
        self._covariance = prior.covariance
        self._precision_sum: Vector | None = None
        """The upper triangle of the matrix; None if the matrix is zero. The array is
        never changed in place, because it is shared with copied groups and with
        posteriors restored from them."""
        self._moment_sum: Vector = np.zeros(size)
        self._pending: list[tuple[Vector, float, float]] = []
        """Observations not yet in the sums: ``x``, ``y``, variance."""
        self._unsolved = 0
        """Number of observations since the posterior was last solved."""
        self._group: DecayedSums | None = None
        """The sums as last copied or restored; None if the sums have changed since."""
        self._restored = False
        """Whether ``_group`` was restored and the attributes above are outdated."""
        self.observed = 0.0
        """Decayed number of observations."""
        self.observations = 0
        """Number of all observations."""
        self.epoch = 0
        """Number of restarts; see ``mergeable.DecayedSums``."""

    @property
    def mean(self) -> Vector:
        """The posterior mean of the coefficients."""
        if self._restored:
            self._load_restored()
        return self._mean

    def variance(self, x: Vector) -> float:
        """Return the variance of ``x . w``, without the noise of an observation."""
        self._load_restored()
        return max(0.0, quadratic_form(self._covariance, x))  # (3.59)

    def narrowed(self, x: Vector, variance: float) -> float:
        """Return the variance of ``x . w`` for prediction, given ``variance(x)``.

        The result is at most the variance of an unknown family, because the prior for
        learning is wider than the differences between families.
        """
        if self._families is None:
            return variance
        return self._families.least_variance(x, variance)

    def learn(self, x: Vector, y: float, variance: float) -> None:
        """Learn an observation ``y`` of ``x . w`` with noise of ``variance``.

        ``x`` is kept until it is added to the sums, so it must not change.
        """
        self._load_restored()
        self._group = None
        self._pending.append((x, y, variance))
        self._unsolved += 1
        self.observed = self._keep * self.observed + 1.0
        self.observations += 1
        if self._unsolved >= _STALE_SHARE * min(self.observed, _SETTLED):
            self.solve()
        elif len(self._pending) >= _MOST_PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        if not self._pending:
            return
        xs, ys, variances = zip(*self._pending, strict=True)
        self._pending.clear()
        x, y = np.array(xs), np.array(ys)
        count = len(y)
        faded = self._keep ** np.arange(count)[::-1]
        keep = self._keep**count
        if self._families is not None:
            self._evidence_sum *= keep
            self._evidence_sum += faded @ self._families.evidence(x, y)
        weighted = (faded / np.array(variances))[:, None] * x
        self._moment_sum = keep * self._moment_sum + weighted.T @ y
        packed, _, _ = _packing(len(self._mean))
        added: Vector = (weighted.T @ x).take(packed)
        if self._precision_sum is not None:
            added += keep * self._precision_sum
        self._precision_sum = added

    def solve(self) -> None:
        """Update the mean and the covariance with all observations so far."""
        self._add_pending()
        self._unsolved = 0
        mean, precision = self._prior_now()
        moment = precision @ mean + self._moment_sum
        if self._precision_sum is not None:
            _, places, _ = _packing(len(mean))
            precision = precision + self._precision_sum.take(places)  # (3.51)
        self._covariance = invert_positive(precision)
        self._mean = self._covariance @ moment  # (3.50)

    def _prior_now(self) -> tuple[Vector, Matrix]:
        """Return the mean and the precision of the families favored by evidence."""
        if self._families is None or not self._evidence_sum.any():
            return self._prior.mean, self._prior.precision
        weights = self._families.weights(self._evidence_sum)
        return self._families.mean_and_precision(weights)

    def snapshot(self) -> DecayedSums:
        """Return a copy of the sums: precision, moment, evidence, observed."""
        if self._group is None:
            self._add_pending()
            size = len(self._mean)
            upper = self._precision_sum
            if upper is None:
                upper = np.zeros(size * (size + 1) // 2)
            observed = np.array([self.observed])
            sums = np.concatenate(
                [upper, self._moment_sum, self._evidence_sum, observed]
            )
            self._group = DecayedSums(self._keep, self.observations, sums, self.epoch)
            self._precision_sum = sums[: len(upper)]
        return self._group

    def restore(self, group: DecayedSums) -> bool:
        """Replace the sums with those of a group, which are solved when first used.

        Returns:
            False if nothing was changed, because the sums cannot result from
            observations with this number of terms (wrong size, or negative sum of
            squares).
        """
        if (group.epoch, group.observations) == (self.epoch, self.observations):
            return True
        size = len(self._mean)
        packed, _, diagonal = _packing(size)
        if group.sums.shape != (len(packed) + size + len(self._evidence_sum) + 1,):
            return False
        if (group.sums[diagonal] < 0.0).any():
            return False
        self._group, self._restored = group, True
        self.observed = max(0.0, float(group.sums[-1]))
        self.observations, self.epoch = group.observations, group.epoch
        self._pending.clear()
        return True

    def _load_restored(self) -> None:
        """Solve restored sums; clear all sums if observations cannot result in them.

        ``restore`` leaves this work to the first use, because solving 64 models at once
        would delay every decision.
        """
        if not self._restored or self._group is None:
            return
        self._restored = False
        size = len(self._mean)
        packed, places, _ = _packing(size)
        sums, count = self._group.sums, len(packed)
        self._precision_sum = sums[:count]
        self._moment_sum = sums[count : count + size]
        self._evidence_sum = np.minimum(sums[count + size : -1], 0.0)
        try:
            np.linalg.cholesky(self._prior.precision + self._precision_sum.take(places))
        except np.linalg.LinAlgError:
            self._precision_sum, self._moment_sum = None, np.zeros(size)
            self._evidence_sum[:] = 0.0
            self.observed, self.observations = 0.0, 0
            self.epoch += 1
            self._group = None
        self.solve()
