"""Tests of whether a simulated fleet is in a steady state and precisely measured.

A fleet starts empty and fills over a few mean residence times; figures from the filling
period are too good. So a run is divided into batches, and only batches that start after
``RunSettings.fill`` mean residence times are measured. The first and the second half of
these batches must agree on the number of requests in every pool. If they do not agree,
the first half also counts as filling, and the run continues. A fleet whose queues only
grow is reported as overloaded.

The residence time is measured in the second half of the run so far, so it grows with
the run while the fleet fills.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from extproc.fleet.declared import Declared
from extproc.fleet.results import FEWEST_FOR_P99, PoolResult, Result, RunState

#: Number of responses after which a router counts as trained.
TAUGHT = 2000
#: Number of mean residence times after which a fleet has filled. With exponentially
#: distributed residence, exp(-5) = 0.7 % of the final number of requests are missing at
#: this time.
FILL_RESIDENCES = 5.0
#: Number of batches for the intervals; ten to thirty are recommended (Law, 9.5.3).
BATCHES = 10
#: Two halves of a run agree if their means have at most this relative difference ...
_CLOSE = 0.02
#: ... or if their means differ by at most this number of standard errors.
_ERRORS = 3.0
_MOST_BATCHES = 64
#: Number of batches into which the minimum number of measured requests is divided.
_BATCHES_OF_REQUESTS = 20
#: A run stops after this multiple of the number of requests to measure, but not before
#: ``_GIVE_UP`` requests, because large fleets need that many to fill.
_GIVE_UP_TIMES = 20
_GIVE_UP = 200_000
#: Minimum number of mean residence times to measure, two per batch, so that batches are
#: nearly independent.
_MEASURED_RESIDENCES = 20.0


def always(result: Result) -> bool:
    """Accept any measured result."""
    return True


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The length of a simulation and the rules for its end."""

    requests: int
    """Minimum number of requests to measure."""
    seed: int
    declared: Declared = Declared.EXACT
    fill: float = FILL_RESIDENCES
    """Number of mean residence times before the first measured request. With 0, the run
    ends after ``requests`` requests and is measured from the first request to the last
    answer, including filling and draining."""
    most_requests: int | None = None
    """Maximum number of requests to simulate; None for 20 times ``requests`` or
    200,000, whichever is more."""
    enough: Callable[[Result], bool] = always
    """Test of whether a steady result is precise enough to stop."""
    period_s: float = 0.0
    """Period of a stream that repeats itself, so that batches are whole periods; 0 for
    other streams."""
    batches: int = BATCHES
    """Minimum number of batches to measure."""
    tick_s: float = 1.0
    """Maximum delay until the router learns of a response or of pressure."""
    taught: int = TAUGHT
    """Number of requests from which the router has learned before the first arrival; 0
    for a cold start."""

    @property
    def limit(self) -> int:
        """Number of requests after which the run stops."""
        if not self.fill:
            return self.requests
        if self.most_requests is not None:
            return self.most_requests
        return max(_GIVE_UP_TIMES * self.requests, _GIVE_UP)

    @property
    def batch_requests(self) -> int:
        """Number of requests in each batch before batches are merged."""
        return max(1, self.requests // _BATCHES_OF_REQUESTS)


class Measurement:
    """The batches of a run so far, and the choice of batches to measure.

    Neighboring batches are merged if there are many, so that memory is bounded and
    batches grow with the run.
    """

    def __init__(self, run: RunSettings) -> None:
        self._run = run
        self._batches: list[Result] = []
        self._merged = 1
        self._least_fill_s = 0.0

    def end_s(self, batch: Result, at_s: float) -> float | None:
        """Return the end of the batch if it is over at ``at_s``, otherwise None."""
        if self._run.period_s:
            end_s = batch.start_s + self._merged * self._run.period_s
            return end_s if end_s <= at_s else None
        enough = batch.measured >= self._run.batch_requests * self._merged
        return at_s if enough else None

    def add(self, batch: Result) -> None:
        """Add the next batch."""
        self._batches.append(batch)
        if len(self._batches) == _MOST_BATCHES:
            halved = [
                Result.of(self._batches[index : index + 2])
                for index in range(0, _MOST_BATCHES, 2)
            ]
            self._batches = halved
            self._merged *= 2

    def settled(self) -> Result | None:
        """Return the result once it is steady and precise, or cannot be; else None."""
        if sum(batch.measured for batch in self._batches) < self._run.requests:
            return None
        if self._is_overloaded():
            return self._result(len(self._batches) * 2 // 3, RunState.OVERLOADED)
        first = self._first_measured()
        measured = self._batches[first:]
        requests = sum(batch.measured for batch in measured)
        if requests < self._run.requests or len(measured) < self._run.batches:
            return None
        result = self._result(first, RunState.STEADY)
        if result.duration_s < _MEASURED_RESIDENCES * self._residence_s():
            return None
        if not all(agree(pools) for pools in self._judged(result)):
            self._least_fill_s = measured[len(measured) // 2].start_s
            return None
        return result if self._run.enough(result) else None

    def last(self) -> Result:
        """Return the result of a run that ends now, in any state."""
        if not self._run.fill:
            return self._result(0, RunState.TRANSIENT)
        first = self._first_measured()
        if len(self._batches) - first < self._run.batches:
            first = len(self._batches) // 2
            state = RunState.UNSETTLED
        else:
            state = RunState.STEADY
        result = self._result(first, state)
        if not all(agree(pools) for pools in self._judged(result)):
            result.state = RunState.UNSETTLED
        if any(_is_growing(pools) for pools in self._judged(result)):
            result.state = RunState.OVERLOADED
        return result

    def _first_measured(self) -> int:
        """Return the index of the first batch that starts in a filled fleet."""
        begin_s = max(self._run.fill * self._residence_s(), self._least_fill_s)
        return next(
            (
                index
                for index, batch in enumerate(self._batches)
                if batch.start_s >= begin_s
            ),
            len(self._batches),
        )

    def _residence_s(self) -> float:
        """Return the longest mean residence of any pool in the run's second half."""
        whole = Result.of(self._batches[len(self._batches) // 2 :])
        return max(
            (pool.residence_s for pool in whole.pools if self._counts(pool, whole)),
            default=0.0,
        )

    def _counts(self, pool: PoolResult, whole: Result) -> bool:
        """Return whether a pool has enough requests to be considered.

        Pools with few requests are excluded, because their noise would prolong the run.
        """
        share = min(1.0, FEWEST_FOR_P99 / self._run.requests)
        return pool.arrivals >= min(0.5, share) * (whole.measured - whole.rejected)

    def _judged(self, result: Result) -> list[list[PoolResult]]:
        """Return the batches of each considered pool."""
        return [
            pools
            for pools, whole in zip(
                _by_pool_of(result.batches), result.pools, strict=True
            )
            if self._counts(whole, result)
        ]

    def _is_overloaded(self) -> bool:
        """Return whether requests are piling up in a pool (see ``_is_piling_up``)."""
        count = len(self._batches) // 3
        if count < 3:
            return False
        thirds = [
            Result.of(self._batches[-(k + 1) * count : -k * count or None])
            for k in (2, 1, 0)
        ]
        return any(_is_piling_up(pools) for pools in _by_pool_of(thirds))

    def _result(self, first: int, state: RunState) -> Result:
        measured = self._batches[min(first, len(self._batches) - 1) :]
        result = Result.of(measured)
        count = min(BATCHES, len(measured))
        edges = [round(k * len(measured) / count) for k in range(count + 1)]
        result.batches = tuple(
            Result.of(measured[start:end]) for start, end in itertools.pairwise(edges)
        )
        result.state = state
        result.fill_s = result.start_s
        return result


def _by_pool_of(
    stretches: "tuple[Result, ...] | list[Result]",
) -> list[list[PoolResult]]:
    return [list(pools) for pools in zip(*(s.pools for s in stretches), strict=True)]


def _halves(pools: list[PoolResult]) -> tuple[list[float], list[float]]:
    """Return a pool's number of requests in each batch of both halves."""
    counts = [pool.mean_in_system for pool in pools if pool.duration_s]
    middle = len(counts) // 2
    return counts[:middle], counts[middle:]


def agree(pools: list[PoolResult]) -> bool:
    """Return whether both halves of a pool's batches have the same number of requests.

    The halves agree if they differ by at most 2 %, or by at most three standard errors
    of the difference of their means. With independent batches, the halves agree in 98
    of 100 runs.
    """
    first, second = _halves(pools)
    if not first or not second:
        return False
    before, after = statistics.fmean(first), statistics.fmean(second)
    error = math.sqrt(_error_squared(first) + _error_squared(second))
    difference = abs(after - before)
    return difference <= max(_CLOSE * (before + after) / 2, _ERRORS * error)


def _error_squared(values: list[float]) -> float:
    """Return the squared standard error of a mean; 2 % is assumed for one value."""
    if len(values) < 2:
        return (_CLOSE * values[0]) ** 2
    return statistics.variance(values) / len(values)


def _is_growing(pools: list[PoolResult]) -> bool:
    """Return whether the second half has significantly more requests than the first."""
    first, second = _halves(pools)
    if not first or not second:
        return False
    return statistics.fmean(second) > statistics.fmean(first) and not agree(pools)


def _is_piling_up(thirds: list[PoolResult]) -> bool:
    """Return whether more requests wait than run, and their number grows."""
    first, second, third = (pool.in_system_s - pool.running_s for pool in thirds)
    lasts = [pool.duration_s for pool in thirds]
    if not all(lasts):
        return False
    first, second, third = first / lasts[0], second / lasts[1], third / lasts[2]
    running = thirds[2].running_s / lasts[2]
    return third > 1.3 * second and second > first and third > running
