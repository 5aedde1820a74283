"""The figures of a simulated pool and of a fleet, each with its confidence interval."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from extproc.fleet.histogram import Histogram
from extproc.fleet.intervals import Interval, half_width
from extproc.fleet.results import (
    FEWEST_FOR_P99,
    PoolResult,
    Result,
)
from extproc.fleet.slo import COVERED


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """A pool's figures over the measured period.

    Units are seconds, requests a second and shares (0 to 1). By Little's law,
    ``mean_in_system`` is ``requests_per_s`` times ``mean_e2e_s``.
    """

    requests: int
    """Number of requests that finished in the measured period."""
    utilization: Interval
    """Request rate divided by the request rate of the saturated pool."""
    requests_per_s: Interval
    mean_ttft_s: Interval
    p50_ttft_s: Interval
    p99_ttft_s: Interval
    mean_tpot_s: Interval
    p50_tpot_s: Interval
    p99_tpot_s: Interval
    mean_wait_s: Interval
    p99_wait_s: Interval
    mean_e2e_s: Interval
    p99_e2e_s: Interval
    preemption_rate: Interval
    busy_share: Interval
    """Share of time during which an instance computes."""
    mean_running: Interval
    """Number of running requests per instance. ``mean_in_system``, in contrast, is for
    the whole pool and includes waiting requests."""
    mean_in_system: Interval
    mean_kv_cache_usage: Interval
    peak_kv_cache_usage: Interval
    tokens_per_s: Interval
    cached_share: Interval


def pool_figures(
    results: Sequence[Result], index: int, saturated_rate: float = math.nan
) -> PoolFigures:
    """Return the figures of a pool, with intervals over batches or over runs.

    Args:
        index: index of the pool.
        saturated_rate: maximum throughput of the whole pool, in requests a second.
    """

    def measure(of: Callable[[PoolResult], float]) -> Interval:
        if len(results) == 1:
            return results[0].pool_interval(index, of)
        return spread([of(result.pools[index]) for result in results])

    def p99(of: Callable[[PoolResult], Histogram]) -> Interval:
        if len(results) == 1:
            return results[0].p99(of, index)
        return spread_p99([of(result.pools[index]) for result in results])

    return PoolFigures(
        requests=sum(result.pools[index].requests for result in results),
        utilization=measure(lambda pool: pool.rate / saturated_rate),
        requests_per_s=measure(lambda pool: pool.rate),
        mean_ttft_s=measure(lambda pool: pool.ttft.mean),
        p50_ttft_s=measure(lambda pool: pool.ttft.quantile(0.5)),
        p99_ttft_s=p99(lambda pool: pool.ttft),
        mean_tpot_s=measure(lambda pool: pool.tpot.mean),
        p50_tpot_s=measure(lambda pool: pool.tpot.quantile(0.5)),
        p99_tpot_s=p99(lambda pool: pool.tpot),
        mean_wait_s=measure(lambda pool: pool.wait.mean),
        p99_wait_s=p99(lambda pool: pool.wait),
        mean_e2e_s=measure(lambda pool: pool.e2e.mean),
        p99_e2e_s=p99(lambda pool: pool.e2e),
        preemption_rate=measure(lambda pool: pool.preemption_rate),
        busy_share=measure(lambda pool: pool.busy_share),
        mean_running=measure(lambda pool: pool.mean_running),
        mean_in_system=measure(lambda pool: pool.mean_in_system),
        mean_kv_cache_usage=measure(lambda pool: pool.mean_kv_cache_usage),
        peak_kv_cache_usage=measure(lambda pool: pool.peak_kv_cache_usage),
        tokens_per_s=measure(lambda pool: pool.tokens_per_s),
        cached_share=measure(lambda pool: pool.cached_share),
    )


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """The figures of the whole fleet; shares are of all requests that arrived."""

    p50_ttft_s: Interval
    p99_ttft_s: Interval
    p99_tpot_s: Interval
    p99_wait_s: Interval
    late_share: Interval
    rejected_share: Interval
    overflow_share: Interval
    truncated_share: Interval
    misrouted_short: Interval
    misrouted_long: Interval


def fleet_figures(results: Sequence[Result]) -> FleetFigures:
    """Return the figures of the fleet, with intervals over batches or over runs."""

    def measure(of: Callable[[Result], float]) -> Interval:
        if len(results) == 1:
            return results[0].interval(of)
        return spread([of(result) for result in results])

    def p99(of: Callable[[PoolResult], Histogram]) -> Interval:
        if len(results) == 1:
            return results[0].p99(of)
        return spread_p99([result.merged(of) for result in results])

    return FleetFigures(
        p50_ttft_s=measure(lambda result: result.ttft.quantile(0.5)),
        p99_ttft_s=p99(lambda pool: pool.ttft),
        p99_tpot_s=p99(lambda pool: pool.tpot),
        p99_wait_s=p99(lambda pool: pool.wait),
        late_share=measure(lambda result: result.late_share),
        rejected_share=measure(lambda result: result.rejected_share),
        overflow_share=measure(lambda result: result.overflow_share),
        truncated_share=measure(lambda result: result.truncated_share),
        misrouted_short=measure(lambda result: result.misrouted_short),
        misrouted_long=measure(lambda result: result.misrouted_long),
    )


def spread(values: Sequence[float]) -> Interval:
    """Return the mean of independent runs and half the width of its 95 % interval."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Interval(math.nan)
    return Interval(statistics.fmean(finite), half_width(finite))


def spread_p99(histograms: Sequence[Histogram]) -> Interval:
    """Return ``spread`` of the 99th percentiles, if every run has enough requests."""
    if any(histogram.count < FEWEST_FOR_P99 for histogram in histograms):
        return Interval(math.nan)
    return spread([histogram.quantile(COVERED) for histogram in histograms])


def intervals(figures: PoolFigures | FleetFigures) -> dict[str, Any]:
    """Return ``mean`` and ``half_width`` (or None) of each figure for JSON."""
    return {
        name: {"mean": plain(each.value), "half_width": plain(each.half_width)}
        for name, each in named(figures).items()
    }


def named(figures: PoolFigures | FleetFigures) -> dict[str, Interval]:
    """Return the figures that have an interval, by name."""
    values = {each.name: getattr(figures, each.name) for each in fields(figures)}
    return {key: value for key, value in values.items() if isinstance(value, Interval)}


def plain(value: float | None) -> float | int | None:
    """Return a number for JSON, rounded to six digits; None if it is not finite."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
