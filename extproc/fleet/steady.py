"""When a simulated fleet has settled, and when enough of it has been seen.

A fleet starts empty. It has filled after a few mean residence times; what it does
before that flatters it. So a run is cut into batches, and only those are measured that
start after ``RunSettings.fill`` mean residence times. Their two halves must then agree
in the number of requests in every pool: if they do not, the first half counts as
filling too and the run goes on. A fleet whose queues only grow is overloaded, and is
reported so.

The residence time is that of the second half of the run so far, so that it grows with
the run as long as the fleet fills.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from extproc.fleet.declared import Declared
from extproc.fleet.results import FEWEST_FOR_P99, PoolResult, Result, RunState

#: Responses after which a router is no longer new.
TAUGHT = 2000
#: Mean residence times after which a fleet has filled: of a residence that is
#: exponentially distributed, exp(-5) = 0.7 % of the final number are missing then.
FILL_RESIDENCES = 5.0
#: Batches whose spread gives the intervals; ten to thirty are advised (Law, 9.5.3).
BATCHES = 10
#: Halves that differ by no more than this share of their mean agree.
_CLOSE = 0.02
#: Standard errors of the difference between the means of halves that still agree.
_ERRORS = 3.0
_MOST_BATCHES = 64
#: Batches of the fewest measured requests.
_BATCHES_OF_REQUESTS = 20
#: A run gives up after so many times the requests that it was to measure, and no sooner
#: than ``_GIVE_UP`` requests: large fleets take that many to fill.
_GIVE_UP_TIMES = 20
_GIVE_UP = 200_000
#: Mean residence times that are measured, so that batches hardly depend on each other.
_MEASURED_RESIDENCES = 5.0


def always(result: Result) -> bool:
    """Whatever was measured is enough."""
    return True


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How much to simulate."""

    requests: int
    """Measured at the least."""
    seed: int
    declared: Declared = Declared.EXACT
    fill: float = FILL_RESIDENCES
    """Mean residence times before the first measured request; 0 for a run that is
    measured from its first request to its last answer, filling and draining included,
    and ends after ``requests``."""
    most_requests: int | None = None
    """Simulated at the most; None for 20 times ``requests``, or 200,000 if that is
    more."""
    enough: Callable[[Result], bool] = always
    """Of a steady result, whether it is precise enough to stop."""
    period_s: float = 0.0
    """Of a stream that repeats itself; whole periods are batches then. 0 for one that
    does not."""
    batches: int = BATCHES
    """Measured at the least."""
    tick_s: float = 1.0
    """How late, at most, the router learns of a response and of pressure."""
    taught: int = TAUGHT
    """Requests that the router has learned from before the first arrival; 0 for one
    that starts cold."""

    @property
    def limit(self) -> int:
        """Requests after which the run gives up."""
        if not self.fill:
            return self.requests
        if self.most_requests is not None:
            return self.most_requests
        return max(_GIVE_UP_TIMES * self.requests, _GIVE_UP)

    @property
    def batch_requests(self) -> int:
        """Requests of the first batches."""
        return max(1, self.requests // _BATCHES_OF_REQUESTS)


class Measurement:
    """The batches of a run so far, and what of them is measured.

    Neighbors are merged when there are many, so that memory is bounded and batches grow
    with the run.
    """

    def __init__(self, run: RunSettings) -> None:
        self._run = run
        self._batches: list[Result] = []
        self._merged = 1
        self._least_fill_s = 0.0

    def end_s(self, batch: Result, at_s: float) -> float | None:
        """When the batch ends that is at ``at_s`` now; None if it goes on."""
        if self._run.period_s:
            end_s = batch.start_s + self._merged * self._run.period_s
            return end_s if end_s <= at_s else None
        enough = batch.measured >= self._run.batch_requests * self._merged
        return at_s if enough else None

    def add(self, batch: Result) -> None:
        """Take the next batch."""
        self._batches.append(batch)
        if len(self._batches) == _MOST_BATCHES:
            halved = [
                Result.of(self._batches[index : index + 2])
                for index in range(0, _MOST_BATCHES, 2)
            ]
            self._batches = halved
            self._merged *= 2

    def settled(self) -> Result | None:
        """The result, as soon as it is steady and precise or is sure to be neither."""
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
        """The result of a run that ends here, whatever it is worth."""
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
        """Position of the first batch that starts after the fleet has filled."""
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
        """The longest mean residence of any pool, in the second half of the run."""
        whole = Result.of(self._batches[len(self._batches) // 2 :])
        return max(
            (pool.residence_s for pool in whole.pools if self._counts(pool, whole)),
            default=0.0,
        )

    def _counts(self, pool: PoolResult, whole: Result) -> bool:
        """Whether a pool gets enough of the requests for figures of its own.

        The others would keep a run going for their noise.
        """
        share = min(1.0, FEWEST_FOR_P99 / self._run.requests)
        return pool.arrivals >= min(0.5, share) * (whole.measured - whole.rejected)

    def _judged(self, result: Result) -> list[list[PoolResult]]:
        """Batches of each pool that counts."""
        return [
            pools
            for pools, whole in zip(
                _by_pool_of(result.batches), result.pools, strict=True
            )
            if self._counts(whole, result)
        ]

    def _is_overloaded(self) -> bool:
        """Whether more requests wait than run somewhere, and ever more of them."""
        count = len(self._batches) // 3
        seen = sum(batch.measured for batch in self._batches)
        if count < 3 or seen < self._run.requests:
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
    """Requests in the pool, batch by batch, of the first half and of the second."""
    counts = [pool.mean_in_system for pool in pools if pool.duration_s]
    middle = len(counts) // 2
    return counts[:middle], counts[middle:]


def agree(pools: list[PoolResult]) -> bool:
    """Whether the halves of a pool's batches hold as many requests.

    They do if they differ by 2 %, or by three standard errors of the difference of
    their means: a run of independent batches passes 98 times of 100.
    """
    first, second = _halves(pools)
    if not first or not second:
        return False
    before, after = statistics.fmean(first), statistics.fmean(second)
    error = math.sqrt(_error_squared(first) + _error_squared(second))
    difference = abs(after - before)
    return difference <= max(_CLOSE * (before + after) / 2, _ERRORS * error)


def _error_squared(values: list[float]) -> float:
    """Square of the standard error of a mean; of one value, 2 % of it."""
    if len(values) < 2:
        return (_CLOSE * values[0]) ** 2
    return statistics.variance(values) / len(values)


def _is_growing(pools: list[PoolResult]) -> bool:
    """Whether the second half holds more than the first, and they do not agree."""
    first, second = _halves(pools)
    if not first or not second:
        return False
    return statistics.fmean(second) > statistics.fmean(first) and not agree(pools)


def _is_piling_up(thirds: list[PoolResult]) -> bool:
    """Whether requests wait in growing numbers, and more of them than run."""
    first, second, third = (pool.in_system_s - pool.running_s for pool in thirds)
    lasts = [pool.duration_s for pool in thirds]
    if not all(lasts):
        return False
    first, second, third = first / lasts[0], second / lasts[1], third / lasts[2]
    running = thirds[2].running_s / lasts[2]
    return third > 1.3 * second and second > first and third > running
