import asyncio
from typing import Any

import pytest

from extproc.demo.standin.engine import Engine, StepTime
from extproc.fleet.scheduled import Step
from extproc.fleet.scheduler import SchedulerLimits

FAST = StepTime(speed=1e6)


def limits(**changes: Any) -> SchedulerLimits:
    values: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "num_blocks": 33,
    }
    return SchedulerLimits(**(values | changes))


def run_with(engine: Engine, main: Any) -> Any:
    async def both() -> Any:
        task = asyncio.create_task(engine.run())
        try:
            return await main()
        finally:
            task.cancel()

    return asyncio.run(both())


async def drain(engine: Engine, sequences: list[tuple[int, int]]) -> list[int]:
    with engine.submit(sequences) as generation:
        return [position async for position in generation]


def test_every_token_is_delivered() -> None:
    engine = Engine(limits(), FAST)
    positions = run_with(engine, lambda: drain(engine, [(10, 3), (5, 2)]))
    assert sorted(positions) == [0, 0, 0, 1, 1]
    assert engine.totals.prompt_tokens == 15
    assert engine.totals.generation_tokens == 5


def test_more_requests_than_fit_wait_their_turn() -> None:
    engine = Engine(limits(), FAST)

    async def many() -> list[list[int]]:
        return await asyncio.gather(*(drain(engine, [(40, 20)]) for _ in range(20)))

    assert [len(each) for each in run_with(engine, many)] == [20] * 20
    assert engine.scheduler.kv_cache_usage == 0


def test_preemption_loses_no_token() -> None:
    """Two sequences compete for the same KV blocks."""
    engine = Engine(limits(num_blocks=10), FAST)

    async def two() -> list[list[int]]:
        return list(
            await asyncio.gather(drain(engine, [(60, 60)]), drain(engine, [(60, 60)]))
        )

    assert [len(each) for each in run_with(engine, two)] == [60, 60]
    assert engine.totals.preemptions > 0


def test_it_keeps_time() -> None:
    """The engine is never faster than its steps allow, but a busy machine may slow it
    down.
    """
    engine = Engine(limits(), StepTime(weights_s=0.05, sequence_s=0, prefill_token_s=0))

    async def time_of_four() -> float:
        began_s = asyncio.get_running_loop().time()
        await drain(engine, [(10, 4)])
        return asyncio.get_running_loop().time() - began_s

    assert run_with(engine, time_of_four) >= 0.19


def test_leaving_early_frees_the_blocks() -> None:
    engine = Engine(limits(), FAST)

    async def leave() -> None:
        with engine.submit([(10, 100)]) as generation:
            async for _ in generation:
                break

    run_with(engine, leave)
    assert engine.scheduler.kv_cache_usage == 0
    assert not engine.scheduler.running


def test_an_engine_that_could_never_hold_a_full_window_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks: 5"):
        Engine(limits(num_blocks=5), FAST)


def test_a_step_costs_weights_sequences_and_prefill() -> None:
    time = StepTime(weights_s=8, sequence_s=1, prefill_token_s=0.5, speed=2)
    decode = Step(
        scheduled={"a": 1, "b": 1},
        context_tokens=9,
        preempted=(),
        sampled=("a", "b"),
        finished=(),
    )
    prefill = Step(
        scheduled={"a": 1, "b": 11},
        context_tokens=9,
        preempted=(),
        sampled=("a", "b"),
        finished=(),
    )
    assert time.of(decode) == (8 + 2) / 2
    assert time.of(prefill) == (8 + 2 + 5) / 2
