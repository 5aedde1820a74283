"""Bayesian linear regression on decayed sums (Bishop, PRML 2006, section 3.3).

    precision = prior precision + sum of x x' / variance
    moment    = prior moment    + sum of x y / variance

The sums fade with each observation and the prior never does, which keeps the system
positive definite whatever was seen. Being sums, they add up across processes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from extproc.routing.mergeable import DecayedSums
from extproc.routing.prior import Matrix, Prior
from extproc.routing.regressors import Vector

# The posterior is solved again once this share of its observations is new. A solution
# takes half a millisecond, so about 15 us an observation when settled.
_STALE_SHARE = 1 / 16
_SETTLED = 512.0


@cache
def _upper_triangle(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(size)


class Posterior:
    """What is believed of linear coefficients, given a prior and observations.

    Args:
        prior: the belief before the first observation.
        memory: observations over which a sum fades to 1/e.
    """

    def __init__(self, prior: Prior, memory: float) -> None:
        size = len(prior.mean)
        self._keep = math.exp(-1.0 / memory)
        self._prior_precision = prior.precision
        self._prior_moment = prior.precision @ prior.mean
        self._mean = prior.mean
        self._covariance = prior.covariance
        self._precision: Matrix = np.zeros((size, size))
        self._moment: Vector = np.zeros(size)
        self._pending: list[Vector] = []
        self._group: DecayedSums | None = None
        """The sums as they were last copied out, or given; None: there are newer."""
        self._unsolved = False
        """Whether ``_group`` is given and nothing else is of it yet."""
        self.observed = 0.0
        """Observations, faded."""
        self.observations = 0
        """All of them."""
        self.epoch = 0
        """See ``learned.DecayedSums``; for whoever starts over with a new posterior."""

    @property
    def mean(self) -> Vector:
        """The coefficients believed in."""
        self._catch_up()
        return self._mean

    def variance(self, x: Vector) -> float:
        """Return the variance of ``x . w``, noise not included."""
        self._catch_up()
        return max(0.0, float(x.dot(self._covariance.dot(x))))

    def learn(self, x: Vector, y: float, variance: float) -> None:
        """Fold in that ``x . w`` was ``y``, give or take noise of that variance."""
        self._catch_up()
        self._group = None
        self._pending.append(np.append(x, y) / math.sqrt(variance))
        self.observed = self._keep * self.observed + 1.0
        self.observations += 1
        stale = _STALE_SHARE * min(self.observed, _SETTLED)
        if len(self._pending) >= stale:
            self._solve()

    def _fold_pending(self) -> None:
        if not self._pending:
            return
        ages = np.arange(len(self._pending))[::-1]
        rows = np.array(self._pending) * self._keep ** (ages[:, None] / 2)
        x, y = rows[:, :-1], rows[:, -1]
        keep = self._keep ** len(rows)
        self._precision *= keep
        self._precision += x.T @ x
        self._moment *= keep
        self._moment += x.T @ y
        self._pending.clear()

    def _solve(self) -> None:
        self._fold_pending()
        precision = self._prior_precision + self._precision
        moment = self._prior_moment + self._moment
        self._covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        self._mean = self._covariance @ moment

    def snapshot(self) -> DecayedSums:
        """Copy the sums out: upper triangle of the precision, moment, observed."""
        if self._group is None:
            self._fold_pending()
            upper = self._precision[_upper_triangle(len(self._mean))]
            sums = np.concatenate([upper, self._moment, [self.observed]])
            self._group = DecayedSums(self._keep, self.observations, sums, self.epoch)
        return self._group

    def restore(self, group: DecayedSums) -> bool:
        """Go on from these sums; leave them, and return False, if they are not ours.

        They are not if they are of another number of terms, or if a sum of squares
        among them is negative. Sums that are those already here are not solved again,
        others when they are first asked for.
        """
        if (group.epoch, group.observations) == (self.epoch, self.observations):
            return True
        size = len(self._mean)
        rows, columns = _upper_triangle(size)
        if group.sums.shape != (len(rows) + size + 1,):
            return False
        if (group.sums[: len(rows)][rows == columns] < 0.0).any():
            return False
        self._group, self._unsolved = group, True
        self.observed = max(0.0, float(group.sums[-1]))
        self.observations, self.epoch = group.observations, group.epoch
        self._pending.clear()
        return True

    def _catch_up(self) -> None:
        """Solve what was given; start over if no observations could have made it.

        Not when it is given: those of 64 models at once would hold up whoever waits for
        a decision of any.
        """
        if not self._unsolved or self._group is None:
            return
        self._unsolved = False
        size = len(self._mean)
        rows, columns = _upper_triangle(size)
        precision = np.zeros((size, size))
        upper = self._group.sums[: len(rows)]
        precision[rows, columns] = precision[columns, rows] = upper
        moment = self._group.sums[len(rows) : -1].copy()
        try:
            np.linalg.cholesky(self._prior_precision + precision)
        except np.linalg.LinAlgError:
            precision[:], moment[:] = 0.0, 0.0
            self.observed, self.observations = 0.0, 0
            self.epoch += 1
            self._group = None
        self._precision, self._moment = precision, moment
        self._solve()
