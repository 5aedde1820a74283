"""The saving of a split into two pools, in closed form.

The papers' formula (arXiv 2604.08075, "savings = alpha (1 - 1/rho)"). At an arrival
rate L, a homogeneous fleet whose instances each serve mu requests a second needs
G = L / mu instances. If the share alpha of the requests, the short ones, goes to
instances that serve rho mu each, and the rest stays on unchanged instances:

    G' = alpha L / (rho mu) + (1 - alpha) L / mu
    (G - G') / G = alpha (1 - 1 / rho)

Its assumptions, and where they fail:

- An instance of the long pool serves mu requests a second for any traffic. But without
  the short requests, its requests are longer on average, so it serves fewer;
  :func:`split` uses each pool's own rate instead.
- There is no queueing, no rounding up and no headroom for an SLO. :func:`split` and
  :func:`homogeneous` round up and keep utilization under a limit.
- mu depends on the homogeneous configuration. If its ``max_num_seqs`` is sized for the
  worst case, raising ``max_num_seqs`` yields a part of rho, often all of it, without a
  split; :mod:`extproc.fleet.sizing` calculates both.

So the formula is an upper bound on what the split itself saves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Hours in a year of 365 days, used for all totals here.
HOURS_PER_YEAR = 8760
#: Hours in twelve months of 30 days. arXiv 2604.08075 multiplies by this number for its
#: Llama-3-70B figure ($2.86M), and by 8,760 for its Qwen3-235B figure ($15.4M).
HOURS_PER_TWELVE_MONTHS = 8640

# 1000 / 250.0 may be slightly above 4 in floating point.
_ROUNDING_SLACK = 1e-9


def formula_saving(short_fraction: float, throughput_gain: float) -> float:
    """Return the saved share of a homogeneous fleet, alpha (1 - 1/rho) in the papers.

    Args:
        short_fraction: alpha, the share of requests in the short pool, 0 to 1.
        throughput_gain: rho, the request rate of an instance of the short pool divided
            by that of an instance of the homogeneous fleet (> 0). Below 1, the saving
            is negative.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= short_fraction <= 1:
        raise ValueError(f"short_fraction: {short_fraction}; expected 0 to 1")
    if throughput_gain <= 0:
        raise ValueError(f"throughput_gain: {throughput_gain}; expected > 0")
    return short_fraction * (1 - 1 / throughput_gain)


@dataclass(frozen=True, slots=True)
class Demand:
    """The load of one pool and the capacity of one of its instances."""

    rate: float
    """Requests a second that reach the pool (>= 0)."""
    instance_rate: float
    """Requests of this pool that one instance serves in a second (> 0)."""

    def instances(self, max_utilization: float = 1.0) -> int:
        """Return the number of instances that ``max_utilization`` requires, rounded up.

        Raises:
            ValueError: a rate or the utilization is out of range.
        """
        if self.rate < 0 or self.instance_rate <= 0:
            raise ValueError(
                f"rate: {self.rate}, instance_rate: {self.instance_rate}; "
                "expected >= 0 and > 0"
            )
        if not 0 < max_utilization <= 1:
            raise ValueError(f"max_utilization: {max_utilization}; expected 0 < x <= 1")
        needed = self.rate / (self.instance_rate * max_utilization)
        return math.ceil(needed * (1 - _ROUNDING_SLACK))


def homogeneous(rate: float, instance_rate: float, max_utilization: float = 1.0) -> int:
    """Return the number of instances of one pool for all requests."""
    return Demand(rate, instance_rate).instances(max_utilization)


def split(pools: Sequence[Demand], max_utilization: float = 1.0) -> int:
    """Return the total number of instances; each pool's number is rounded up.

    Each pool has its own ``instance_rate``. This is the papers' refinement: the rate of
    the long pool is measured on long requests only.
    """
    return sum(pool.instances(max_utilization) for pool in pools)


def saving(before: float, after: float) -> float:
    """Return the share of ``before`` (> 0) that ``after`` saves; may be negative."""
    if before <= 0:
        raise ValueError(f"before: {before}; expected > 0")
    return (before - after) / before


def usd_per_year(
    instances: float,
    gpus_per_instance: int,
    usd_per_gpu_hour: float,
    hours_per_year: float = HOURS_PER_YEAR,
) -> float:
    """Return the cost of instances that run for the given hours, in dollars."""
    return instances * gpus_per_instance * usd_per_gpu_hour * hours_per_year
