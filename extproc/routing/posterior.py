"""Bayesian linear regression on decayed sums (Bishop, PRML 2006, section 3.3).

With prior N(m0, S0) over the coefficients and observations (x, y) of variance v:

    SN^-1 = S0^-1 + sum of x x' / v                (3.51)
    mN    = SN (S0^-1 m0 + sum of x y / v)         (3.50)
    variance of the mean's prediction = x' SN x    (3.59, without the noise)

Divergence: Bishop has one noise variance, here each observation has its own, and the
sums fade with each observation. The prior does not fade, which keeps SN positive
definite whatever was observed. A prior made of families is the mixture of those that
the observations favor (empirical Bayes); their evidence is a sum too. Being sums, all
of them add up across processes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from extproc.routing.arithmetic import quadratic_form
from extproc.routing.arrays import Matrix, Vector
from extproc.routing.mergeable import DecayedSums
from extproc.routing.prior import Prior

# The posterior is solved again once this share of its observations is new. A solution
# takes half a millisecond, so about 15 us an observation when settled.
_STALE_SHARE = 1 / 16
_SETTLED = 512.0

# Weights of families that differ by less keep the prior that they last made.
_SAME_WEIGHTS = 0.01


@cache
def _upper_triangle(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(size)


class Posterior:
    """The distribution of linear coefficients, given a prior and observations.

    Args:
        prior: the belief before the first observation.
        memory: observations over which a sum fades to 1/e.
    """

    def __init__(self, prior: Prior, memory: float) -> None:
        size = len(prior.mean)
        self._keep = math.exp(-1.0 / memory)
        self._families = prior.families
        count = 0 if self._families is None else len(self._families.coefficients)
        self._evidence_sum: Vector = np.zeros(count)
        self._weights: Vector = np.full(count, 1.0 / max(1, count))
        self._prior = prior
        self._mean = prior.mean
        self._covariance = prior.covariance
        self._precision_sum: Matrix = np.zeros((size, size))
        self._moment_sum: Vector = np.zeros(size)
        self._pending: list[Vector] = []
        """Observations that are not in the sums yet."""
        self._group: DecayedSums | None = None
        """The sums as last copied out or restored; None once there are newer ones."""
        self._restored = False
        """Whether ``_group`` was restored, and the attributes above are older."""
        self.observed = 0.0
        """Observations, faded."""
        self.observations = 0
        """All of them."""
        self.epoch = 0
        """See ``mergeable.DecayedSums``: one more each time that learning restarts."""

    @property
    def mean(self) -> Vector:
        """The posterior mean of the coefficients."""
        self._load_restored()
        return self._mean

    def variance(self, x: Vector) -> float:
        """Return the variance of ``x . w``, without the noise of an observation."""
        self._load_restored()
        return max(0.0, quadratic_form(self._covariance, x))  # (3.59)

    def prediction_variance(self, x: Vector) -> float:
        """Return the variance of ``x . w`` to predict with.

        At most that of an unknown family: the prior to learn with is wider than
        families differ.
        """
        variance = self.variance(x)
        if self._families is None:
            return variance
        return self._families.least_variance(x, variance)

    def learn(self, x: Vector, y: float, variance: float) -> None:
        """Learn that ``x . w`` was observed as ``y``, with noise of ``variance``."""
        self._load_restored()
        self._group = None
        if self._families is not None:
            self._evidence_sum *= self._keep
            self._evidence_sum += self._families.evidence(x, y)
        self._pending.append(np.append(x, y) / math.sqrt(variance))
        self.observed = self._keep * self.observed + 1.0
        self.observations += 1
        stale = _STALE_SHARE * min(self.observed, _SETTLED)
        if len(self._pending) >= stale:
            self.solve()

    def _add_pending(self) -> None:
        if not self._pending:
            return
        ages = np.arange(len(self._pending))[::-1]
        rows = np.array(self._pending) * self._keep ** (ages[:, None] / 2)
        x, y = rows[:, :-1], rows[:, -1]
        keep = self._keep ** len(rows)
        self._precision_sum *= keep
        self._precision_sum += x.T @ x
        self._moment_sum *= keep
        self._moment_sum += x.T @ y
        self._pending.clear()

    def solve(self) -> None:
        """Bring the mean and the covariance up to date with every observation."""
        self._add_pending()
        prior = self._choose_prior()
        precision = prior.precision + self._precision_sum  # (3.51)
        moment = prior.precision @ prior.mean + self._moment_sum
        self._covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        self._mean = self._covariance @ moment  # (3.50)

    def _choose_prior(self) -> Prior:
        if self._families is not None:
            weights = self._families.weights(self._evidence_sum)
            if np.abs(weights - self._weights).max() > _SAME_WEIGHTS:
                self._weights, self._prior = weights, self._families.mixture(weights)
        return self._prior

    def snapshot(self) -> DecayedSums:
        """Copy the sums out: precision's upper triangle, moment, evidence, observed."""
        if self._group is None:
            self._add_pending()
            upper = self._precision_sum[_upper_triangle(len(self._mean))]
            observed = np.array([self.observed])
            sums = np.concatenate(
                [upper, self._moment_sum, self._evidence_sum, observed]
            )
            self._group = DecayedSums(self._keep, self.observations, sums, self.epoch)
        return self._group

    def restore(self, group: DecayedSums) -> bool:
        """Go on from these sums, solved when the posterior is first asked for.

        Returns:
            False, and changes nothing, if no observations of this number of terms
            have such sums: another size, or a negative sum of squares.
        """
        if (group.epoch, group.observations) == (self.epoch, self.observations):
            return True
        size = len(self._mean)
        rows, columns = _upper_triangle(size)
        if group.sums.shape != (len(rows) + size + len(self._evidence_sum) + 1,):
            return False
        if (group.sums[: len(rows)][rows == columns] < 0.0).any():
            return False
        self._group, self._restored = group, True
        self.observed = max(0.0, float(group.sums[-1]))
        self.observations, self.epoch = group.observations, group.epoch
        self._pending.clear()
        return True

    def _load_restored(self) -> None:
        """Solve restored sums; start over if no observations can have made them.

        ``restore`` does not: 64 models restored at once would delay every decision.
        """
        if not self._restored or self._group is None:
            return
        self._restored = False
        size = len(self._mean)
        rows, columns = _upper_triangle(size)
        precision = np.zeros((size, size))
        upper = self._group.sums[: len(rows)]
        precision[rows, columns] = precision[columns, rows] = upper
        moment = self._group.sums[len(rows) : len(rows) + size].copy()
        evidence = np.minimum(self._group.sums[len(rows) + size : -1], 0.0)
        try:
            np.linalg.cholesky(self._prior.precision + precision)
        except np.linalg.LinAlgError:
            precision[:], moment[:], evidence[:] = 0.0, 0.0, 0.0
            self.observed, self.observations = 0.0, 0
            self.epoch += 1
            self._group = None
        self._precision_sum, self._moment_sum = precision, moment
        self._evidence_sum = evidence
        self.solve()
