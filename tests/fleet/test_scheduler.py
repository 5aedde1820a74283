"""vLLM's decisions, step by step, and the invariants that hold for any workload."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet.scheduler import Scheduler, SchedulerLimits, Status

LIMITS = SchedulerLimits(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=256,
    num_blocks=41,
    block_size=16,
)


def limits_of(recording: dict[str, Any]) -> SchedulerLimits:
    known = {field.name for field in fields(SchedulerLimits)}
    return SchedulerLimits(**{k: v for k, v in recording.items() if k in known})


def test_every_step_of_a_recording_of_vllm(recording: dict[str, Any]) -> None:
    scheduler = Scheduler(limits_of(recording))
    arrivals = sorted(recording["requests"], key=lambda r: r["step"])
    aborts = recording.get("aborts", [])
    assert recording["steps"]
    for now, expected in enumerate(recording["steps"]):
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            scheduler.add(r["id"], r["prompt_tokens"], r["output_tokens"])
        for abort in aborts:
            if abort["step"] == now:
                scheduler.abort(abort["id"])
        step = scheduler.step()
        decided = {
            "scheduled": step.scheduled,
            "preempted": sorted(step.preempted),
            "finished": sorted(step.finished),
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "free_blocks": scheduler.free_blocks,
        }
        assert decided == expected, f"step {now}"
        assert list(step.scheduled) == list(expected["scheduled"]), f"step {now}"
    assert not arrivals


def test_a_prompt_is_computed_in_chunks_and_sampled_with_the_last() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add("a", 100, 2)
    first, second, third = (scheduler.step() for _ in range(3))
    assert first.scheduled == {"a": 64}
    assert first.sampled == ()
    assert second.scheduled == {"a": 36}
    assert second.context_tokens == 64
    assert second.sampled == ("a",)
    assert third.scheduled == {"a": 1}
    assert third.finished == ("a",)
    assert scheduler.free_blocks == LIMITS.usable_blocks


def test_running_requests_come_before_waiting_ones() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add("a", 10, 5)
    scheduler.step()
    scheduler.add("b", 200, 1)
    assert scheduler.step().scheduled == {"a": 1, "b": 63}


def test_the_last_admitted_request_is_preempted_and_keeps_its_output() -> None:
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=64,
        num_blocks=5,
        block_size=16,
    )
    scheduler = Scheduler(limits)
    scheduler.add("a", 31, 20)
    scheduler.add("b", 31, 20)
    assert scheduler.step().scheduled == {"a": 31, "b": 31}
    assert scheduler.step().scheduled == {"a": 1, "b": 1}
    step = scheduler.step()
    assert step.preempted == ("b",)
    assert step.scheduled == {"a": 1}
    evicted = scheduler.get("b")
    assert evicted is not None
    assert evicted.status is Status.PREEMPTED
    assert (evicted.num_computed_tokens, evicted.num_output_tokens) == (0, 2)
    while scheduler.waiting:
        step = scheduler.step()
    assert step.scheduled == {"b": 33}
    assert scheduler.get("a") is None


def test_a_prompt_that_can_never_fit_blocks_the_queue() -> None:
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_seqs=4, max_num_batched_tokens=64, max_model_len=256, num_blocks=4
        )
    )
    scheduler.add("a", 100, 1)
    scheduler.add("b", 1, 1)
    assert scheduler.step().scheduled == {}
    assert scheduler.abort("a")
    assert scheduler.step().scheduled == {"b": 1}


def test_abort_of_an_unknown_request_is_false() -> None:
    assert not Scheduler(LIMITS).abort("a")


def test_a_name_is_taken_until_its_request_ends() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add("a", 1, 1)
    with pytest.raises(ValueError, match="'a' is already queued"):
        scheduler.add("a", 1, 1)
    scheduler.step()
    scheduler.add("a", 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: 0, expected an integer >= 1"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens: 3, expected .* >= 4"),
        ({"num_blocks": 1}, "num_blocks: 1, expected an integer >= 2"),
        ({"watermark": 1.0}, "watermark: 1.0, expected 0 <= x < 1"),
        ({"enable_chunked_prefill": False}, "expected >= max_model_len"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_limits_are_refused(change: dict[str, Any], message: str) -> None:
    plain = {f.name: getattr(LIMITS, f.name) for f in fields(LIMITS)}
    with pytest.raises(ValueError, match=message):
        SchedulerLimits(**plain | change)


limits_strategy = st.builds(
    lambda seqs, extra, model_len, block, spare, threshold, watermark, reserve: (
        SchedulerLimits(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + extra,
            max_model_len=model_len,
            # vLLM starts only if one request of max_model_len fits.
            num_blocks=1 + -(-model_len // block) + spare,
            block_size=block,
            long_prefill_token_threshold=threshold,
            watermark=watermark,
            scheduler_reserve_full_isl=reserve,
        )
    ),
    st.integers(1, 12),
    st.integers(0, 100),
    st.integers(2, 120),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 20),
    st.sampled_from([0, 0, 7, 40]),
    st.sampled_from([0.0, 0.0, 0.1]),
    st.booleans(),
)
requests_strategy = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 118), st.integers(1, 40)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(limits_strategy, requests_strategy)
def test_budgets_order_and_progress_hold(
    limits: SchedulerLimits, requests: list[tuple[int, int, int]]
) -> None:
    """At every step: tokens, blocks and sequences within their limits, first come
    first served among requests never preempted, and something done."""
    scheduler = Scheduler(limits)
    pending = [
        (f"r{i}", gap, min(prompt, limits.max_model_len - 1), output)
        for i, (gap, prompt, output) in enumerate(requests)
    ]
    admitted: list[str] = []
    outputs: dict[str, int] = dict.fromkeys((name for name, *_ in pending), 0)
    done: set[str] = set()
    while pending or scheduler.running or scheduler.waiting:
        if pending:
            name, gap, prompt, output = pending[0]
            if gap == 0 or not (scheduler.running or scheduler.waiting):
                scheduler.add(name, prompt, output)
                pending.pop(0)
                continue
            pending[0] = (name, gap - 1, prompt, output)
        step = scheduler.step()
        assert step.scheduled or step.preempted, "no progress"
        assert step.num_scheduled_tokens <= limits.max_num_batched_tokens
        assert len(scheduler.running) <= limits.max_num_seqs
        held = sum(sequence.num_blocks for sequence in scheduler.running)
        assert held + scheduler.free_blocks == limits.usable_blocks
        assert scheduler.free_blocks >= 0
        assert 0.0 <= scheduler.kv_cache_usage <= 1.0
        for sequence in scheduler.running:
            computed = limits.blocks_for(sequence.num_computed_tokens)
            assert sequence.num_blocks >= computed
        assert all(sequence.num_blocks == 0 for sequence in scheduler.waiting)
        admitted += [name for name in step.scheduled if name not in admitted]
        for name in step.sampled:
            outputs[name] += 1
        assert not done & set(step.scheduled), "a finished request ran"
        done |= set(step.finished)
    assert admitted == sorted(admitted, key=lambda name: int(name[1:]))
    assert done == set(outputs)
    for index, (_, prompt, output) in enumerate(requests):
        prompt = min(prompt, limits.max_model_len - 1)
        assert outputs[f"r{index}"] == min(output, limits.max_model_len - prompt)
