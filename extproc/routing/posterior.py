"""Bayesian linear regression on decayed sums (Bishop, PRML 2006, section 3.3).

    precision = prior precision + sum of x x' / variance
    moment    = prior moment    + sum of x y / variance

The sums fade with each observation and the prior never does, which keeps the system
positive definite whatever was seen. Being sums, they add up across processes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from extproc.routing.prior import Matrix, Prior
from extproc.routing.terms import Vector

# The posterior is solved again once this share of its observations is new. A solution
# takes half a millisecond, so about 15 us an observation when settled.
_STALE_SHARE = 1 / 16
_SETTLED = 512.0


@dataclass(slots=True)
class _Sums:
    precision: Matrix
    moment: Vector
    observed: float = 0.0


def _no_sums(size: int) -> _Sums:
    return _Sums(np.zeros((size, size)), np.zeros(size))


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
        self._own = _no_sums(size)
        self._peers: _Sums | None = None
        self._pending: list[Vector] = []

    @property
    def observed(self) -> float:
        """Observations made here, faded."""
        return self._own.observed

    def predict(self, x: Vector) -> tuple[float, float]:
        """Return the mean of ``x . w`` and its variance, noise not included."""
        variance = float(x @ (self._covariance @ x))
        return float(x @ self._mean), max(0.0, variance)

    def learn(self, x: Vector, y: float, variance: float) -> None:
        """Fold in that ``x . w`` was ``y``, give or take noise of that variance."""
        self._pending.append(np.append(x, y) / math.sqrt(variance))
        self._own.observed = self._keep * self._own.observed + 1.0
        stale = _STALE_SHARE * min(self._own.observed, _SETTLED)
        if len(self._pending) >= stale:
            self._solve()

    def _fold_pending(self) -> None:
        if not self._pending:
            return
        rows = np.array(self._pending)
        x, y = rows[:, :-1], rows[:, -1]
        keep = self._keep ** len(rows)
        self._own.precision *= keep
        self._own.precision += x.T @ x
        self._own.moment *= keep
        self._own.moment += x.T @ y
        self._pending.clear()

    def _solve(self) -> None:
        self._fold_pending()
        precision = self._prior_precision + self._own.precision
        moment = self._prior_moment + self._own.moment
        if self._peers is not None:
            precision += self._peers.precision
            moment += self._peers.moment
        self._covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        self._mean = self._covariance @ moment

    def snapshot(self) -> dict[str, Any]:
        """Return the sums made here as plain values.

        ``{"precision": str, "moment": str, "observed": float}``: the upper triangle
        row by row, and the vector, as base64 of little-endian float64.
        """
        self._fold_pending()
        upper = self._own.precision[np.triu_indices(len(self._mean))]
        return {
            "precision": _encode(upper),
            "moment": _encode(self._own.moment),
            "observed": self._own.observed,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Replace the sums made here.

        Raises:
            KeyError, TypeError, ValueError: not a snapshot of as many coefficients.
        """
        self._own = self._read(snapshot)
        self._pending.clear()
        self._solve()

    def absorb(self, peers: Sequence[Mapping[str, Any]]) -> None:
        """Count other processes' sums in, in place of those absorbed before.

        Raises:
            KeyError, TypeError, ValueError: one is not a snapshot.
        """
        total = _no_sums(len(self._mean))
        for sums in map(self._read, peers):
            total.precision += sums.precision
            total.moment += sums.moment
        self._peers = total if peers else None
        self._solve()

    def _read(self, snapshot: Mapping[str, Any]) -> _Sums:
        size = len(self._mean)
        sums = _no_sums(size)
        rows, columns = np.triu_indices(size)
        upper = _decode(snapshot["precision"], len(rows))
        sums.precision[rows, columns] = upper
        sums.precision[columns, rows] = upper
        sums.moment = _decode(snapshot["moment"], size)
        sums.observed = float(snapshot["observed"])
        return sums


def _encode(values: Vector) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode("ascii")


def _decode(text: str, size: int) -> Vector:
    values: npt.NDArray[np.float64] = np.frombuffer(
        base64.b64decode(text, validate=True), dtype="<f8"
    ).astype(np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(f"expected {size} finite numbers, got {values.shape[0]}")
    return values
