"""A replay keeps the instants, lengths, peak and bursts of its file."""

import itertools

import numpy as np
import pytest

from extproc.fleet.assignment import Inquiry, Tier, assign_replay
from extproc.fleet.replay import Replay, busiest
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.sizing import SizingTask, in_rounds, size_pool
from extproc.fleet.slo import Slo
from extproc.fleet.steady import RunSettings
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Recorded, RenewalArrivals, Seconds

STEP = Linear(base_s=0.01, seq_s=1e-4, token_s=2e-5)
ORACLE = StrategySpec(StrategyName.ORACLE, {"prose": 1.0})


def lengths(count: int) -> Recorded:
    """Each request has a unique prompt length, which identifies it."""
    return Recorded(np.arange(1, count + 1), np.arange(1, count + 1) % 7 + 1)


def rounds(replay: Replay, count: int = 1) -> list[tuple[float, int, int]]:
    """Return each request of the first rounds as instant, prompt and output."""
    blocks = replay(np.random.default_rng(0), np.random.default_rng(1))
    found: list[tuple[float, int, int]] = []
    for times, prompts, outputs, _ in blocks:
        if times[0] >= count * replay.period_s:
            break
        found += zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return found


def test_requests_keep_their_instants_and_their_lengths() -> None:
    instants = np.array([14.0, 10.0, 20.0, 11.0])
    replay = busiest(instants, lengths(4))
    assert replay.own_rate == pytest.approx(0.3)
    assert rounds(replay) == [(0, 2, 3), (1, 4, 5), (4, 1, 2), (10, 3, 4)]
    twice = rounds(replay, 2)
    assert twice[4:] == [
        (replay.period_s + at_s, *tokens) for at_s, *tokens in twice[:4]
    ]


def test_a_higher_rate_is_made_of_shifted_copies() -> None:
    rng = np.random.default_rng(3)
    instants = np.sort(rng.random(600)) * 1800
    replay = busiest(instants, lengths(600), rate=1.0)
    assert replay.copies == pytest.approx(3, rel=0.01)
    found = rounds(replay)
    assert len(found) == pytest.approx(1800, rel=0.05)
    times = [at_s for at_s, *_ in found]
    assert times == sorted(times)
    assert times[-1] <= replay.period_s
    # The copies of a request arrive within a minute after the request, so they keep its
    # place in the hour.
    own_s = float(instants[300] - instants[0])
    copies = [at_s for at_s, prompt, _ in found if prompt == 301]
    assert len(copies) >= 2
    assert all(own_s <= at_s <= own_s + 60 for at_s in copies)


def test_a_lower_rate_leaves_requests_out() -> None:
    instants = np.linspace(0, 1000, 1001)
    found = rounds(busiest(instants, lengths(1001), rate=0.25))
    assert len(found) == pytest.approx(250, abs=50)
    assert all(at_s == prompt - 1 for at_s, prompt, _ in found)


def test_of_a_long_file_the_busiest_hour_is_taken() -> None:
    quiet = np.arange(0, 86_400, 60.0)
    busy = 40_000 + np.arange(0, 3600, 4.0)
    instants = np.concatenate([quiet, busy])
    replay = busiest(instants, lengths(len(instants)))
    assert replay.period_s == 3600
    assert replay.start_s == pytest.approx(40_000, abs=60)
    assert len(replay.instants) == pytest.approx(900 + 60, abs=2)


def test_of_a_busy_hour_the_busiest_part_is_taken() -> None:
    quiet, burst = np.arange(0, 3600, 1.0), 1000 + np.arange(0, 60, 0.1)
    instants = np.concatenate([quiet, burst])
    replay = busiest(instants, lengths(len(instants)), most_requests=1200)
    assert 60 <= replay.period_s < 1200
    assert replay.start_s <= 1000
    assert replay.start_s + replay.period_s >= 1060
    crowded = busiest(instants, lengths(len(instants)), rate=1000)
    assert crowded.period_s == 60
    assert crowded.rate > 1000


def test_a_strategy_places_every_request_at_its_own_instant() -> None:
    tiers = [
        Tier("short", SchedulerLimits(8, 512, 500, 4000), 500),
        Tier("long", SchedulerLimits(8, 512, 2000, 4000), 2000),
    ]
    replay = busiest(np.arange(1000, dtype=np.float64), lengths(1000))
    found = assign_replay(replay, Inquiry(tiers, ORACLE, 1, learning_lag=100))
    parts = [pool.replay for pool in found.pools]
    assert [len(part.instants) for part in parts if part is not None] == [
        len(pool.lengths.prompts) for pool in found.pools
    ]
    for at_s, prompt, _ in itertools.chain(*(rounds(p) for p in parts if p)):
        assert at_s == prompt - 1


def bursty(seed: int = 5) -> Seconds:
    """Return ten minutes of arrivals, half of them in bursts of about a second."""
    rng = np.random.default_rng(seed)
    bursts = np.repeat(rng.random(10) * 590, 60) + rng.random(600)
    return np.sort(np.concatenate([bursts, rng.random(600) * 600]))


def task(arrivals: Replay | RenewalArrivals) -> SizingTask:
    limits = SchedulerLimits(64, 512, 8192, 4000)
    tiers = [Tier("all", limits, 8192)]
    rng = np.random.default_rng(6)
    drawn = Recorded(rng.integers(500, 2000, 1200), rng.integers(50, 200, 1200))
    replay = busiest(bursty(), drawn)
    asked = assign_replay(replay, Inquiry(tiers, ORACLE, 1, learning_lag=100))
    return SizingTask(
        tiers[0], STEP, asked.pools[0], arrivals, replay.rate, Slo(1.0), 1, 2000
    )


def test_bursts_take_more_instances_than_poisson_arrivals_of_their_rate() -> None:
    rng = np.random.default_rng(6)
    drawn = Recorded(rng.integers(500, 2000, 1200), rng.integers(50, 200, 1200))
    replay = busiest(bursty(), drawn)
    recorded = size_pool(task(replay))
    poisson = size_pool(task(RenewalArrivals(replay.rate)))
    assert recorded.met
    assert poisson.met
    assert recorded.instances > poisson.instances


def test_whole_rounds_are_measured() -> None:
    replay = busiest(bursty(), lengths(1200))
    limits = SchedulerLimits(64, 512, 8192, 4000)
    result = simulate(
        [PoolSpec("all", 4, limits, STEP, 8192)],
        replay,
        ORACLE,
        in_rounds(RunSettings(1, seed=1, taught=0), replay, 3),
    )
    assert result.duration_s == pytest.approx(3 * replay.period_s)
    assert result.measured == 3 * 1200
    assert len(result.batches) == 3
