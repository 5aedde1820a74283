"""Measurement starts after the fleet has filled, and all runs have similar figures."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from extproc.fleet.figures import pool_figures
from extproc.fleet.results import (
    FEWEST_FOR_P99,
    PoolResult,
    Result,
    RunState,
)
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.slo import Slo
from extproc.fleet.steady import (
    FILL_RESIDENCES,
    Measurement,
    RunSettings,
    agree,
)
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import (
    WORKLOADS,
    Independent,
    Recorded,
    RenewalArrivals,
    Tokens,
)

# A decode step takes 10 ms plus 0.2 ms per sequence, so a fuller instance is slower.
STEP = Linear(base_s=0.01, seq_s=2e-4, token_s=2e-5)
ORACLE = StrategySpec(StrategyName.ORACLE, {"prose": 1.0})


def answers(count: int = 5000) -> Recorded:
    """Return lognormal answer lengths with a mean of 2,000, as of a reasoning model."""
    rng = np.random.default_rng(7)
    outputs: Tokens = np.maximum(
        1, rng.lognormal(np.log(2000) - 0.32, 0.8, count).astype(int)
    )
    prompts: Tokens = np.maximum(1, rng.lognormal(5, 1, count).astype(int))
    return Recorded(prompts, np.minimum(outputs, 15_000))


def run(
    requests: int,
    rate: float = 5.0,
    instances: int = 4,
    seed: int = 1,
    fill: float = FILL_RESIDENCES,
) -> Result:
    limits = SchedulerLimits(256, 512, 65_536, 40_000)
    return simulate(
        [PoolSpec("all", instances, limits, STEP, 65_536)],
        Independent(answers(), RenewalArrivals(rate)),
        ORACLE,
        RunSettings(requests, seed=seed, fill=fill, tick_s=10, taught=0),
    )


def test_long_answers_are_measured_after_the_fleet_has_filled() -> None:
    """Two thousand requests arrive within 400 s, and each takes 40 s."""
    result = run(2000)
    pool = result.pools[0]
    assert result.state is RunState.STEADY
    assert result.fill_s >= 5 * pool.e2e.mean
    first, *_, last = [batch.pools[0].mean_in_system for batch in result.batches]
    assert first == pytest.approx(last, rel=0.2)


FIGURES: list[Callable[[PoolResult], float]] = [
    lambda pool: pool.ttft.quantile(0.99),
    lambda pool: pool.tpot.quantile(0.99),
    lambda pool: pool.e2e.mean,
    lambda pool: pool.mean_running,
    lambda pool: pool.mean_kv_cache_usage,
    lambda pool: pool.mean_in_system,
]


@pytest.fixture(scope="module")
def many() -> PoolResult:
    return run(120_000, seed=9).pools[0]


@pytest.mark.parametrize("seed", [1, 3])
def test_more_requests_move_no_figure_by_five_per_cent(
    seed: int, many: PoolResult
) -> None:
    """For any seed, 5 % is three standard deviations of the noisiest figure.

    Over eight seeds of 20,000 requests, the figures' standard deviations were 1.9 to
    3.0 %, so with 40,000 requests they are 1.3 to 2.1 %. In a measurement of a tenth of
    that length (400 s, with requests of 40 s), figures and traffic differ by up to
    10 %.
    """
    few = run(40_000, seed=seed).pools[0]
    for figure in FIGURES:
        assert figure(few) == pytest.approx(figure(many), rel=0.05)


def test_little_holds_on_the_figures() -> None:
    pool = run(4000).pools[0]
    assert pool.mean_in_system == pytest.approx(pool.rate * pool.e2e.mean, rel=0.02)
    served_s = pool.e2e.mean - pool.wait.mean
    running = pool.mean_running * pool.instances
    assert running == pytest.approx(pool.rate * served_s, rel=0.02)


def test_a_fleet_that_is_asked_too_much_is_overloaded() -> None:
    """One instance serves at most two of these requests a second."""
    result = run(1000, rate=20.0, instances=2)
    assert result.state is RunState.OVERLOADED
    assert result.in_flight > 1000


def batch(start_s: float, in_system: float) -> Result:
    pool = PoolResult("all", 1, requests=200, duration_s=10.0)
    pool.arrivals = 2000
    pool.in_system_s = pool.running_s = 10 * in_system
    pool.e2e.add([1.0] * 200)
    return Result([pool], start_s=start_s, duration_s=10.0, measured=200)


def measured(counts: list[float], requests: int = 2000) -> Measurement:
    measurement = Measurement(RunSettings(requests, seed=1))
    for index, count in enumerate(counts):
        measurement.add(batch(10.0 * index, count))
    return measurement


def test_halves_that_do_not_agree_are_not_settled() -> None:
    rising = [float(n) for n in range(100, 120)]
    assert measured(rising).settled() is None
    assert measured(rising).last().state is RunState.OVERLOADED
    level = [100.0, 101.0] * 10
    settled = measured(level).settled()
    assert settled is not None
    assert settled.state is RunState.STEADY
    assert measured([100.0] * 3).settled() is None


def test_the_first_half_counts_as_filling_once_the_halves_differ() -> None:
    measurement = measured([10.0] * 7 + [100.0] * 6)
    assert measurement.settled() is None
    for index in range(13, 26):
        measurement.add(batch(10.0 * index, 100.0))
    settled = measurement.settled()
    assert settled is not None
    assert settled.pools[0].mean_in_system == 100.0


def test_neighbors_are_merged_when_there_are_many() -> None:
    measurement = measured([100.0] * 64)
    short = Result([], start_s=640.0, measured=150)
    long = Result([], start_s=640.0, measured=200)
    assert measurement.end_s(short, 700.0) is None
    assert measurement.end_s(long, 700.0) == 700.0
    settled = measurement.settled()
    assert settled is not None
    assert len(settled.batches) == 10
    assert sum(batch.measured for batch in settled.batches) == settled.measured


def test_halves_agree_within_their_noise() -> None:
    def pools(*counts: float) -> list[PoolResult]:
        return [batch(0.0, count).pools[0] for count in counts]

    assert agree(pools(100, 101, 101, 100))
    assert agree(pools(80, 120, 95, 118))
    assert not agree(pools(80, 81, 119, 120))


def test_a_99th_percentile_takes_a_thousand_requests() -> None:
    result = run(2 * FEWEST_FOR_P99)
    assert result.p99(lambda pool: pool.ttft).value > 0
    few = run(50, fill=0.0)
    assert few.finished < FEWEST_FOR_P99
    assert math.isnan(few.p99(lambda pool: pool.ttft).value)


def congested(requests: int, seed: int) -> Result:
    """Return a pool with a tenth of its capacity free, so that queues come and go."""
    limits = SchedulerLimits(256, 512, 65_536, 40_000)
    step = Linear(base_s=0.01, seq_s=2e-4, token_s=1e-4, context_s=2e-8)
    return simulate(
        [PoolSpec("all", 2, limits, step, 65_536)],
        Independent(WORKLOADS["azure-conv"].lengths, RenewalArrivals(9.0)),
        ORACLE,
        RunSettings(requests, seed=seed, tick_s=10, taught=0),
    )


LENGTHS: dict[str, Callable[[int, int], Result]] = {
    "long answers": lambda requests, seed: run(requests, seed=seed),
    "queues": congested,
}


@pytest.mark.slow
@pytest.mark.parametrize("traffic", LENGTHS)
def test_intervals_hold_what_a_long_run_comes_to(traffic: str) -> None:
    """A 95 % interval should hold the true figure in 19 of 20 runs.

    Of 40 runs, 38 are expected, and 35 or more in 99 of 100 tests. Figures of queues
    are held less often, because a run without congestion cannot know of it. An unknown
    interval has no end, so it holds everything.
    """
    make = LENGTHS[traffic]
    true = pool_figures([make(200_000, 999)], 0)
    figures = [pool_figures([make(2000, seed)], 0) for seed in range(40)]
    for name, least in LEAST_HELD.items():
        intervals = [getattr(each, name) for each in figures]
        value = getattr(true, name).value
        held = [
            each.half_width is None or abs(each.value - value) <= each.half_width
            for each in intervals
        ]
        assert sum(held) >= least, (name, sum(held))


#: Minimum number of 40 intervals that hold the true figure.
LEAST_HELD = {
    "mean_ttft_s": 33,
    "mean_tpot_s": 35,
    "mean_e2e_s": 35,
    "mean_in_system": 35,
    "requests_per_s": 35,
    "p99_ttft_s": 33,
    "p99_tpot_s": 33,
}


@pytest.mark.parametrize(
    ("long", "late_long", "kept"),
    [(600, 600, False), (600, 6, True), (300, 300, True), (3000, 300, False)],
)
def test_long_requests_are_judged_if_there_are_enough(
    long: int, late_long: int, kept: bool
) -> None:
    pool = PoolResult("all", 1, requests=10_000, long=long, late_long=late_long)
    assert pool.meets(Slo()) is kept
