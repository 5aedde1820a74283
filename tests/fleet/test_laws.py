"""Queueing laws that every simulator of instances must obey."""

import math

import numpy as np
import pytest

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.results import Result
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.simulation import PoolSpec, simulate
from extproc.fleet.steady import RunSettings
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import WORKLOADS, Independent, RenewalArrivals

# Every step takes a millisecond. A request's service time in milliseconds is therefore
# its number of output tokens, and an instance acts as max_num_seqs servers.
CONSTANT = Linear(base_s=1e-3, seq_s=0.0)


def servers(count: int) -> SchedulerLimits:
    return SchedulerLimits(
        max_num_seqs=count,
        max_num_batched_tokens=64,
        max_model_len=1 << 20,
        num_blocks=1 << 24,
        # If steps were scheduled ahead, each request would occupy its server for one
        # more step.
        async_scheduling=False,
    )


def run_instance(
    limits: SchedulerLimits, arrivals: np.ndarray, outputs: np.ndarray
) -> Instance:
    instance = Instance(limits, CONSTANT)
    for at_s, output in zip(arrivals.tolist(), outputs.tolist(), strict=True):
        instance.advance(at_s)
        instance.add(Job(at_s, 1, output))
    instance.advance(math.inf)
    return instance


def erlang_c(count: int, offered: float) -> float:
    """Return the probability of waiting in an M/M/c queue, from Erlang B's recursion."""
    blocked = 1.0
    for k in range(1, count + 1):
        blocked = offered * blocked / (k + offered * blocked)
    utilization = offered / count
    return blocked / (1 - utilization + utilization * blocked)


def test_erlang_c() -> None:
    """Check one server (the load itself), two servers (a^2 / (2 + a)), and ten servers
    at a load of 8 (published tables).
    """
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.2) == pytest.approx(1.2**2 / (2 + 1.2))
    assert erlang_c(10, 8) == pytest.approx(0.409, abs=5e-4)


@pytest.mark.parametrize(
    ("count", "utilization", "requests", "check_mean"),
    [(2, 0.5, 200_000, True), (8, 0.75, 60_000, False)],
)
def test_exponential_service_is_an_mmc_queue(
    count: int, utilization: float, requests: int, check_mean: bool
) -> None:
    rng = np.random.default_rng(1)
    outputs = np.maximum(1, np.rint(rng.exponential(1000, requests))).astype(int)
    arrivals = np.cumsum(rng.exponential(1 / (utilization * count), requests))
    jobs = run_instance(servers(count), arrivals, outputs).finished
    waits = np.array([job.first_step_s - job.arrival_s for job in jobs])
    # A wait of up to one step is a wait for a step boundary, not for a server.
    waited = float((waits > 1e-3).mean())
    offered = utilization * count
    assert waited == pytest.approx(erlang_c(count, offered), rel=0.03)
    if check_mean:
        expected = erlang_c(count, offered) / (count - offered)
        assert float(waits.mean()) == pytest.approx(expected, rel=0.03)


def test_saturated_throughput_is_slots_over_mean_service_time() -> None:
    rng = np.random.default_rng(2)
    outputs = np.maximum(1, np.rint(rng.gamma(2, 100, 20_000))).astype(int)
    instance = run_instance(servers(16), np.zeros(len(outputs)), outputs)
    throughput = len(outputs) / instance.now_s
    mean_service_s = outputs.mean() * 1e-3
    assert throughput == pytest.approx(16 / mean_service_s, rel=0.02)


def test_saturated_throughput_of_the_papers_instance() -> None:
    """Throughput is 16 / (mean steps x 18.4 ms) if all 16 slots are always full.

    The papers' step time, W + H n, is 18.4 ms for n = 16.
    """
    rng = np.random.default_rng(3)
    limits = SchedulerLimits(16, 8192, 65_536, num_blocks=65_536)
    instance = Instance(
        limits, Linear(base_s=8e-3, seq_s=0.65e-3, token_s=0.65e-3 / 512)
    )
    outputs = rng.integers(200, 400, 3000)
    for output in outputs.tolist():
        instance.add(Job(0.0, 1, output))
    instance.advance(math.inf)
    expected = 16 / (outputs.mean() * 18.4e-3)
    assert 3000 / instance.now_s == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def fleet() -> Result:
    pools = [
        PoolSpec("short", 6, SchedulerLimits(16, 512, 2048, 4000), CONSTANT, 2048),
        PoolSpec("long", 6, SchedulerLimits(16, 512, 16_384, 1200), CONSTANT, 16_384),
    ]
    workload = WORKLOADS["azure-conv"]
    return simulate(
        pools,
        Independent(workload.lengths, RenewalArrivals(300)),
        StrategySpec(StrategyName.ORACLE, workload.mix),
        RunSettings(30_000, seed=4),
    )


def test_what_arrived_completed_or_was_rejected(fleet: Result) -> None:
    assert fleet.arrived == fleet.completed + fleet.in_flight
    assert fleet.measured >= 30_000
    assert fleet.ttft.count == fleet.finished


def test_requests_in_a_pool_are_rate_times_time_in_it(fleet: Result) -> None:
    """Little's law holds for L integrated over time and W measured on the requests."""
    for pool in fleet.pools:
        rate = pool.rate
        assert pool.mean_in_system == pytest.approx(rate * pool.e2e.mean, rel=0.02)
        running = pool.mean_running * pool.instances
        served_s = pool.e2e.mean - pool.wait.mean
        assert running == pytest.approx(rate * served_s, rel=0.02)


def test_kv_is_never_over_budget_and_is_given_back(fleet: Result) -> None:
    for pool in fleet.pools:
        assert 0 < pool.mean_kv_cache_usage < pool.peak_kv_cache_usage <= 1


def test_the_same_seed_gives_the_same_result() -> None:
    def once(seed: int) -> tuple[float, ...]:
        workload = WORKLOADS["lmsys"]
        limits = SchedulerLimits(32, 512, 65_536, 9000)
        result = simulate(
            [PoolSpec("only", 3, limits, Linear(0.01, 1e-4, 1e-5), 65_536)],
            Independent(workload.lengths, RenewalArrivals(40)),
            StrategySpec(StrategyName.ROUTER, workload.mix),
            RunSettings(requests=1000, seed=seed, fill=0, taught=200),
        )
        return result.ttft.total, result.tpot.total, result.duration_s, result.arrived

    assert once(5) == once(5)
    assert once(5) != once(6)
