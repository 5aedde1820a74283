"""A pool that gets few of the fleet's requests has the same figures alone."""

import math
from dataclasses import replace

import pytest

from extproc.fleet.alone import Alone, Precise
from extproc.fleet.assignment import Inquiry, Tier, assign
from extproc.fleet.results import Result
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.sizing import SizingTask
from extproc.fleet.slo import Slo
from extproc.fleet.steady import RunSettings
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import WORKLOADS, Independent, RenewalArrivals

LENGTHS = WORKLOADS["lmsys"].lengths
ARRIVALS = RenewalArrivals(50.0)
STEP = Linear(base_s=0.005, seq_s=2e-4, token_s=2e-5)
ORACLE = StrategySpec(StrategyName.ORACLE, {"prose": 1.0})
WINDOWS = {"short": 4096, "long": 65_536}
INSTANCES = {"short": 4, "long": 1}


def limits(max_model_len: int) -> SchedulerLimits:
    return SchedulerLimits(256, 512, max_model_len, 40_000)


@pytest.fixture(scope="module")
def fleet() -> Result:
    pools = [
        PoolSpec(name, INSTANCES[name], limits(window), STEP, window)
        for name, window in WINDOWS.items()
    ]
    run = RunSettings(60_000, seed=3, tick_s=10, taught=0)
    return simulate(pools, Independent(LENGTHS, ARRIVALS), ORACLE, run)


@pytest.fixture(scope="module")
def tasks() -> list[SizingTask]:
    tiers = [Tier(name, limits(window), window) for name, window in WINDOWS.items()]
    assigned = assign(LENGTHS, Inquiry(tiers, ORACLE, seed=4))
    return [
        SizingTask(
            tier, STEP, traffic, ARRIVALS, 50 * traffic.share, Slo(), 4, headroom=0.1
        )
        for tier, traffic in zip(tiers, assigned.pools, strict=True)
    ]


def test_a_pool_has_the_same_figures_alone(
    fleet: Result, tasks: list[SizingTask]
) -> None:
    """The pool gets 2 % of the requests, so the fleet knows its mean TTFT to 10 %."""
    alone = Alone(20_000, 40_000, seed=5)
    assert alone.is_for(tasks[1], fleet, 1)
    own = alone.measure(tasks[1], fleet, 1, INSTANCES["long"])
    assert own.pools[0].requests > 10 * fleet.pools[1].requests
    assert own.pools[0].rate == pytest.approx(fleet.pools[1].rate, rel=0.05)
    for result, index in ((own, 0), (fleet, 1)):
        assert result.pools[index].requests > 1000
    ttft = own.pool_interval(0, lambda pool: pool.ttft.mean)
    together = fleet.pool_interval(1, lambda pool: pool.ttft.mean)
    assert ttft.relative < together.relative / 2
    assert abs(ttft.value - together.value) <= 1.5 * math.hypot(
        ttft.half_width or 0.0, together.half_width or 0.0
    )


def test_its_rate_is_between_both_samples_of_it(
    fleet: Result, tasks: list[SizingTask]
) -> None:
    """Twice the share in the assignment of 1,000 requests, beside 1,000 in the fleet."""
    traffic = tasks[1].traffic
    double = replace(tasks[1], traffic=replace(traffic, share=2 * traffic.share))
    own = Alone(8000, 12_000, seed=5).measure(double, fleet, 1, 2)
    routed, assigned = fleet.pools[1].requests, len(traffic.lengths.prompts)
    expected = (routed + 2 * assigned) / (routed + assigned)
    assert own.pools[0].rate == pytest.approx(expected * fleet.pools[1].rate, rel=0.05)


def test_a_pool_with_enough_requests_is_not_measured_alone(
    fleet: Result, tasks: list[SizingTask]
) -> None:
    assert not Alone(20_000, 40_000, seed=5).is_for(tasks[0], fleet, 0)
    assert not Alone(500, 2000, seed=5).is_for(tasks[1], fleet, 1)


def test_the_measurement_ends_at_its_limit(
    fleet: Result, tasks: list[SizingTask]
) -> None:
    own = Alone(1200, 1500, seed=5).measure(tasks[1], fleet, 1, INSTANCES["long"])
    assert own.arrived == 1500
    assert not Precise()(own)
