"""Figures of a pool from its own requests, if few of the fleet's requests reach it.

A fleet of 100 instances can take a million requests before a pool that gets half a
percent of them has a precise P99. Pools affect each other only through routing, so such
a pool is simulated alone: its requests are drawn from those that the router sends to it
(:mod:`extproc.fleet.assignment`) and arrive as a random share of the fleet's.
"""

import math
from dataclasses import dataclass, replace

from extproc.fleet.intervals import Interval
from extproc.fleet.replay import Replay
from extproc.fleet.results import Result
from extproc.fleet.sizing import SizingTask, fitting, simulate_alone
from extproc.fleet.steady import RunSettings

#: Maximum relative half-width of a P99's interval that is precise enough for a plan. At
#: this precision, two runs almost always differ by less than 5 %.
PRECISION = 0.025
#: The same for a fleet that a plan is only compared with.
COMPARED_PRECISION = 0.05


@dataclass(frozen=True, slots=True)
class Precise:
    """A test of whether every P99 of a pool is precise."""

    fewest: float = 0.0
    """A pool with fewer requests than this number is ignored."""
    precision: float = PRECISION
    """Maximum relative half-width."""
    of_whole_requests: bool = False
    """Whether the P99 of the time from arrival to the last token must be precise too.
    It has the widest interval, since it depends on the longest answers."""

    def __call__(self, result: Result) -> bool:
        """Return whether the intervals of the P99s are narrow enough."""
        return all(
            interval.relative <= self.precision
            for index, pool in enumerate(result.pools)
            if pool.requests >= self.fewest
            for interval in (
                result.p99(lambda pool: pool.ttft, index),
                result.p99(lambda pool: pool.tpot, index),
                *self._of_whole_requests(result, index),
            )
            if math.isfinite(interval.value)
        )

    def _of_whole_requests(self, result: Result, index: int) -> list[Interval]:
        if not self.of_whole_requests:
            return []
        return [result.p99(lambda pool: pool.e2e, index)]


@dataclass(frozen=True, slots=True)
class Alone:
    """The pools to measure alone, and the length of that measurement."""

    fewest: int
    """A pool is measured alone if fewer of the fleet's requests than this number, and
    less than half of them, reach it. It is also the minimum number of requests to
    measure alone."""
    most: int
    """Maximum number of requests to simulate if the pool's P99s are not precise."""
    seed: int
    precision: float = PRECISION

    def is_for(self, task: SizingTask, result: Result, index: int) -> bool:
        """Return whether to measure a pool alone, given the fleet's result.

        The requests of a replayed file cannot be drawn again.
        """
        enough = min(self.fewest, result.finished / 2)
        return (
            not isinstance(task.arrivals, Replay)
            and len(task.traffic.lengths.prompts) > 0
            and result.pools[index].requests < enough
        )

    def measure(
        self, task: SizingTask, result: Result, index: int, instances: int
    ) -> Result:
        """Simulate a pool alone until its figures are precise.

        Args:
            task: the pool, with its requests as assigned.
            result: the fleet's result.
            index: index of the pool.
        """
        run = RunSettings(
            self.fewest,
            self.seed,
            most_requests=self.most,
            enough=Precise(precision=self.precision, of_whole_requests=True),
            tick_s=10.0,
            taught=0,
        )
        routed = _as_routed(task, result, index)
        return simulate_alone(routed, instances, instances, run, in_order=False)


def _as_routed(task: SizingTask, result: Result, index: int) -> SizingTask:
    """Return the task with the pool's share of requests from both samples of it.

    The share in the simulated fleet and the share in the assignment are weighted by
    their numbers of the pool's requests. Queues of a small pool depend on it.
    """
    window = task.tier.limits.max_model_len
    lengths = fitting(task.traffic.lengths, window)
    routed, assigned = result.pools[index].requests, len(lengths.prompts)
    in_fleet = routed / result.finished * (1 - result.rejected_share)
    share = (routed * in_fleet + assigned * task.traffic.share) / (routed + assigned)
    return replace(task, traffic=replace(task.traffic, share=share, lengths=lengths))
