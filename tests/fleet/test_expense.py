"""Fleets with a GPU type for each pool: sizes, dollars, verdict and emitted files."""

from dataclasses import replace

import pytest

from extproc.fleet.emit import Serving, files
from extproc.fleet.expense import Unit, amount, gpus, unit, usd_per_hour
from extproc.fleet.plan_document import answer
from extproc.fleet.planning import PolicyTask, SizedPolicy, size_policy
from extproc.fleet.question import (
    PoolHardware,
    Question,
    policies,
)
from extproc.fleet.sizing import Engine
from extproc.fleet.steptime import Linear
from extproc.fleet.verdict import BASELINE, PAGED, SPLIT, verdict

from .questions import small_question

pytestmark = pytest.mark.slow

SLOW = Engine("toy on 2 x slow", Linear(0.005, 2e-4, 1e-5, 1e-8), 4800, 16, 2, 1.5)
# This engine is twice as fast, at three times the price.
FAST = Engine("toy on 1 x fast", Linear(0.0025, 1e-4, 5e-6, 5e-9), 4800, 16, 1, 9.0)


def make_question(hardware: dict[str, PoolHardware]) -> Question:
    return small_question("lmsys", SLOW, 60.0, pool_hardware=hardware)


def size(question: Question) -> dict[str, SizedPolicy]:
    return {
        policy.name: size_policy(PolicyTask(question, policy))
        for policy in policies(question)
        if policy.name in (BASELINE, PAGED, SPLIT)
    }


@pytest.fixture(scope="module")
def mixed() -> tuple[Question, dict[str, SizedPolicy]]:
    """Return a fleet whose long pool has the fast GPU type and its own limits."""
    question = make_question({"long": PoolHardware(FAST, 64, 1024)})
    return question, size(question)


@pytest.fixture(scope="module")
def alike() -> tuple[Question, dict[str, SizedPolicy]]:
    question = make_question({})
    return question, size(question)


def test_only_the_pool_that_is_named_runs_on_the_other_gpu(
    mixed: tuple[Question, dict[str, SizedPolicy]],
    alike: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    (question, sized), (_, before) = mixed, alike
    for name in (BASELINE, PAGED):
        assert sized[name].total == before[name].total
    short, long = sized[SPLIT].policy.tiers
    assert short.limits == before[SPLIT].policy.tiers[0].limits
    assert (long.limits.max_num_seqs, long.limits.max_num_batched_tokens) == (64, 1024)
    fast, slow = (each[SPLIT].sizes[1].instance_rate for each in (sized, before))
    assert fast > 1.5 * slow
    # The promised latency does not depend on the GPU.
    plans = answer(question, sized), answer(*alike)
    assert plans[0].slo == plans[1].slo


def test_gpus_and_dollars_are_counted_pool_by_pool(
    mixed: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    question, sized = mixed
    short, long = sized[SPLIT].instances
    assert gpus(question, sized[SPLIT]) == 2 * short + long
    assert usd_per_hour(question, sized[SPLIT]) == 3.0 * short + 9.0 * long
    plan = answer(question, sized, hours_per_year=1000)
    assert plan.gpus == 2 * short + long
    assert plan.dollars_per_year == 3000 * short + 9000 * long
    one_pool = 3000 * sized[BASELINE].total
    assert plan.dollars_per_year_saved == one_pool - plan.dollars_per_year
    assert plan.saving_pct == pytest.approx(
        100 * (one_pool - plan.dollars_per_year) / one_pool, abs=0.1
    )
    assert [pool.engine for pool in plan.pools] == [SLOW.name, FAST.name]


def test_the_verdict_is_in_gpus_and_dollars(
    mixed: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    question, sized = mixed
    text = verdict(question, sized)
    for name in (SPLIT, PAGED):
        usd = usd_per_hour(question, sized[name])
        assert f"{gpus(question, sized[name])} GPUs at ${usd:,.2f} an hour" in text
    assert f"one pool of {SLOW.name}" in text
    # If the fast GPU is expensive, a split with fewer GPUs may still cost more.
    dear = replace(FAST, usd_per_gpu_hour=1e4)
    costly = replace(question, pool_hardware={"long": PoolHardware(dear, 64, 1024)})
    assert "does not pay" in verdict(costly, sized)
    assert "dearer" in verdict(costly, sized)


def test_without_every_price_gpus_are_compared(
    mixed: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    question, sized = mixed
    free = replace(FAST, usd_per_gpu_hour=0)
    unpriced = replace(question, pool_hardware={"long": PoolHardware(free, 64, 1024)})
    assert unit(question) is Unit.DOLLARS
    assert unit(unpriced) is Unit.GPUS
    assert amount(unpriced, sized[SPLIT]) == gpus(question, sized[SPLIT])
    plan = answer(unpriced, sized)
    assert plan.dollars_per_year is None
    assert "an hour" not in plan.verdict


def test_each_pool_is_emitted_with_its_own_gpus(
    mixed: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    plan = answer(*mixed)
    found = files(plan, Serving("org/model", 0.92), deployments=True)
    for name, engine in (("short", SLOW), ("long", FAST)):
        size_flag = f"--tensor-parallel-size {engine.gpus} "
        assert size_flag in found[f"vllm-{name}.sh"]
        assert engine.name in found[f"vllm-{name}.sh"]
        assert f"nvidia.com/gpu: {engine.gpus}\n" in found[f"deployment-{name}.yaml"]
        assert engine.name in found[f"deployment-{name}.yaml"]


def test_alike_fleets_are_compared_by_their_instances(
    alike: tuple[Question, dict[str, SizedPolicy]],
) -> None:
    question, sized = alike
    assert unit(question) is Unit.INSTANCES
    assert amount(question, sized[SPLIT]) == sized[SPLIT].total
