"""The first guess of a size, the search, and each strategy's pool for a request."""

from collections.abc import Mapping

import numpy as np
import pytest

from extproc.fleet.assignment import Inquiry, PoolTraffic, Tier, assign
from extproc.fleet.results import RunState
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.sizing import (
    Engine,
    SizingTask,
    fewest,
    saturated_rate,
    size_pool,
)
from extproc.fleet.slo import Slo, idle_ttft_s, long_promise_s, token_budget
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import Arrival, StrategyName, StrategySpec
from extproc.fleet.workload import WORKLOADS, Recorded, RenewalArrivals
from extproc.routing.policy import PoolLoad

STEP = Linear(base_s=0.01, seq_s=1e-4, token_s=2e-5, context_s=1e-8)
ENGINE = Engine("toy", STEP, 4097, 16, 1, 1.0)


@pytest.mark.parametrize("answer", [1, 2, 7, 40, 99, 100])
@pytest.mark.parametrize("start", [1, 30, 100])
def test_fewest_finds_the_smallest_that_meets(answer: int, start: int) -> None:
    tried: list[int] = []

    def meets(n: int) -> bool:
        tried.append(n)
        return n >= answer

    assert fewest(meets, start, 1, 100) == answer
    assert len(tried) < 20


def test_fewest_gives_up_at_the_most() -> None:
    assert fewest(lambda n: False, 3, 1, 50) == 50


def test_worst_case_seqs_come_from_the_kv_cache() -> None:
    assert ENGINE.kv_tokens == 65_536
    assert ENGINE.limits(8192, None, 512).max_num_seqs == 8
    assert ENGINE.limits(8192, 256, 512).max_num_seqs == 256
    with pytest.raises(
        ValueError, match="max_model_len: 65537; expected at most 65536"
    ):
        ENGINE.limits(65_537, None, 512)


def test_the_token_budget_keeps_a_step_within_the_promise() -> None:
    slo = Slo(p99_tpot_s=0.08)
    budget = token_budget(STEP, slo)
    assert budget == 2048
    assert STEP.fixed_s(budget, 0) <= 0.9 * 0.08 < STEP.fixed_s(2 * budget, 0)


def test_the_idle_first_token_is_what_an_idle_instance_takes() -> None:
    limits = SchedulerLimits(8, 64, 4096, 300)
    lone = Recorded(np.array([150]), np.array([1]))
    rate = saturated_rate(limits, STEP, lone, 1, n=10)
    # Ten prompts of 150 tokens in one queue share steps, but a single prompt shares no
    # steps.
    assert idle_ttft_s(150, limits, STEP) == pytest.approx(
        3 * 0.01 + 150 * 2e-5, rel=1e-6
    )
    assert rate > 1 / idle_ttft_s(150, limits, STEP)
    assert long_promise_s(np.array([150] * 9), limits, STEP, 0.01) == pytest.approx(
        2 * idle_ttft_s(150, limits, STEP)
    )
    assert long_promise_s(np.array([], int), limits, STEP, 0.5) == 0.5


@pytest.mark.parametrize("value", [0, -1])
def test_promises_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="p99_ttft_s"):
        Slo(p99_ttft_s=value)


def tiers() -> list[Tier]:
    return [
        Tier("short", ENGINE.limits(8192, 64, 512), 8192),
        Tier("long", ENGINE.limits(65_536, 64, 512), 65_536),
    ]


def test_an_oracle_assigns_by_the_threshold() -> None:
    workload = WORKLOADS["azure-heavy"]
    found = assign(
        workload.lengths,
        Inquiry(tiers(), StrategySpec(StrategyName.ORACLE, workload.mix), 1),
    )
    short, long = found.pools
    assert short.share == pytest.approx(0.92, abs=0.01)
    assert short.share + long.share == pytest.approx(1)
    assert (short.lengths.prompts + short.lengths.outputs).max() <= 8192
    assert (long.lengths.prompts + long.lengths.outputs).min() > 8192
    assert found.under == found.over == found.rejected == 0


def test_a_rare_pool_is_given_a_sample_of_its_kind() -> None:
    """Only 5 of 100,000 requests in the conversation trace exceed 8,192 tokens."""
    workload = WORKLOADS["azure-conv"]
    found = assign(
        workload.lengths,
        Inquiry(tiers(), StrategySpec(StrategyName.ORACLE, workload.mix), 1),
    )
    long = found.pools[1]
    assert long.share == pytest.approx(1e-4, abs=6e-5)
    assert len(long.lengths.prompts) > 30


def test_prompt_length_routing_sends_long_answers_short() -> None:
    lengths = Recorded(np.array([8000]), np.array([1000]))
    found = assign(
        lengths,
        Inquiry(tiers(), StrategySpec(StrategyName.PROMPT_LENGTH, {"prose": 1.0}), 1),
    )
    assert found.pools[0].share == 1
    assert found.under == 1


class Experienced:
    """A strategy that has learned, and sends requests to the long pool from 1,000 tokens."""

    def choose(
        self, arrival: Arrival, loads: Mapping[str, PoolLoad]
    ) -> tuple[int, object]:
        return int(arrival.prompt_tokens >= 1000), None

    def learn(self, kept: object, prompt_tokens: int, output_tokens: int) -> None:
        raise AssertionError("it has learned already")


def test_a_built_strategy_is_used_as_it_is() -> None:
    workload = WORKLOADS["azure-heavy"]
    found = assign(
        workload.lengths,
        Inquiry(tiers(), Experienced(), 1, requests=3000, learning_lag=1),
    )
    short, long = (pool.lengths.prompts for pool in found.pools)
    assert short.max() < 1000 <= long.min()


def task(rate: float, slo: Slo, requests: int = 3000) -> SizingTask:
    lengths = WORKLOADS["lmsys"].lengths
    prompts, outputs = lengths.draw(np.random.default_rng(1), 4000)
    return SizingTask(
        Tier("all", ENGINE.limits(65_536, 64, 512), 65_536),
        STEP,
        PoolTraffic(1.0, Recorded(prompts, outputs)),
        RenewalArrivals(rate),
        rate,
        slo,
        seed=1,
        requests=requests,
    )


def test_a_sized_pool_meets_its_promises_and_a_smaller_one_is_no_less_than_the_guess() -> (
    None
):
    size = size_pool(task(60, Slo()))
    assert size.met
    assert size.guess <= size.instances <= 2 * size.guess + 1
    assert size.result is not None
    assert size.result.state is RunState.STEADY
    assert size.result.ttft.quantile(0.99) <= 2.0
    assert size.instance_rate * size.guess >= 60


def test_tighter_promises_take_more_instances() -> None:
    loose = size_pool(task(60, Slo(p99_ttft_s=3.0), 1000))
    tight = size_pool(task(60, Slo(p99_ttft_s=0.3), 1000))
    assert tight.instances >= loose.instances


def test_a_promise_that_cannot_be_kept_is_not_met() -> None:
    size = size_pool(task(10, Slo(p99_ttft_s=0.001)))
    assert not size.met
    assert size.instances >= size.guess


def test_a_pool_without_traffic_needs_no_instance() -> None:
    empty = Recorded(np.array([], int), np.array([], int))
    nothing = SizingTask(
        tiers()[0], STEP, PoolTraffic(0.0, empty), RenewalArrivals(1), 0.0, Slo(), 1
    )
    assert size_pool(nothing).instances == 0
