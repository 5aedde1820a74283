"""Each step's decisions equal vLLM's, and invariants hold for any workload."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet.scheduled import Status, Step
from extproc.fleet.scheduler import Scheduler, SchedulerLimits

LIMITS = SchedulerLimits(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=256,
    num_blocks=41,
    block_size=16,
    async_scheduling=False,
)


def test_every_step_of_a_recording_of_vllm(
    recording: dict[str, Any], recorded_limits: SchedulerLimits
) -> None:
    scheduler = Scheduler(recorded_limits)
    arrivals = sorted(recording["requests"], key=lambda r: r["step"])
    aborts = recording.get("aborts", [])
    assert recording["steps"]
    for now, expected in enumerate(recording["steps"]):
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            scheduler.add(
                r["id"],
                r["prompt_tokens"],
                r["output_tokens"],
                max_tokens=r.get("max_tokens"),
                block_hashes=r.get("blocks", ()),
            )
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
        if "cached" in expected:
            decided["cached"] = {name: n for name, n in step.cached.items() if n}
            expected["cached"] = {n: t for n, t in expected["cached"].items() if t}
        if "cached_hashes" in expected:
            decided["cached_hashes"] = scheduler.pool.num_hashes
        assert decided == {key: expected[key] for key in decided}, f"step {now}"
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
        enable_prefix_caching=False,
        async_scheduling=False,
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


CACHED = replace(LIMITS, enable_prefix_caching=True)


def run(scheduler: Scheduler) -> list[Step]:
    steps = []
    while scheduler.running or scheduler.waiting:
        steps.append(scheduler.step())
    return steps


def test_a_prefix_is_found_up_to_the_block_before_the_last_token() -> None:
    scheduler = Scheduler(CACHED)
    scheduler.add("a", 48, 1, block_hashes="xyz")
    run(scheduler)
    scheduler.add("b", 48, 1, block_hashes="xyz")
    assert run(scheduler)[0].scheduled == {"b": 16}
    scheduler.add("c", 49, 1, block_hashes="xyz")
    step = run(scheduler)[0]
    assert step.scheduled == {"c": 1}
    assert step.cached == {"c": 48}
    assert step.context_tokens == 48


def test_an_answer_is_found_by_the_next_turn() -> None:
    scheduler = Scheduler(CACHED)
    scheduler.add("a", 20, 13, block_hashes="xy")
    run(scheduler)
    scheduler.add("b", 50, 1, block_hashes="xyz")
    assert run(scheduler)[0].cached == {"b": 32}


def test_twins_of_one_step_share_their_blocks() -> None:
    scheduler = Scheduler(CACHED)
    for name in "ab":
        scheduler.add(name, 33, 2, block_hashes="xy")
    assert scheduler.step().scheduled == {"a": 33, "b": 1}
    assert scheduler.free_blocks == LIMITS.usable_blocks - 4


def test_the_head_of_a_prompt_is_evicted_last() -> None:
    limits = replace(CACHED, num_blocks=5, max_model_len=64)
    scheduler = Scheduler(limits)
    scheduler.add("a", 48, 1, block_hashes="xyz")
    run(scheduler)
    scheduler.add("b", 32, 1, block_hashes="uv")
    run(scheduler)
    assert scheduler.pool.num_hashes == 4
    scheduler.add("c", 48, 1, block_hashes="xyz")
    assert run(scheduler)[0].cached == {"c": 32}


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    limits = replace(CACHED, max_model_len=64, num_blocks=6)
    scheduler = Scheduler(limits)
    scheduler.add("a", 31, 20)
    scheduler.add("b", 31, 20)
    steps = run(scheduler)
    assert [step.preempted for step in steps if step.preempted] == [("b",)]
    resumed = [step for step in steps if step.cached][1]
    # The other request took only the last block of "b".
    assert resumed.cached == {"b": 16}


AHEAD = replace(LIMITS, async_scheduling=True)


@pytest.mark.parametrize(("max_tokens", "scheduled"), [(2, 0), (9, 1)])
def test_a_step_is_scheduled_before_the_last_tokens_are_known(
    max_tokens: int, scheduled: int
) -> None:
    """An end-of-sequence token cannot be predicted, so one superfluous token is
    computed.
    """
    scheduler = Scheduler(AHEAD)
    scheduler.add("a", 10, 2, max_tokens=max_tokens)
    first, second, third = (scheduler.step() for _ in range(3))
    assert (first.scheduled, first.sampled) == ({"a": 10}, ())
    assert (second.scheduled, second.sampled) == ({"a": 1}, ("a",))
    assert third.num_scheduled_tokens == scheduled
    assert third.finished == ("a",)
    assert not scheduler.running
    assert scheduler.step().sampled == ()
    assert scheduler.free_blocks == LIMITS.usable_blocks


def test_max_tokens_is_at_least_what_comes_out() -> None:
    with pytest.raises(ValueError, match="max_tokens: 1; expected >= output_tokens"):
        Scheduler(LIMITS).add("a", 1, 2, max_tokens=1)


def test_abort_of_an_unknown_request_is_false() -> None:
    assert not Scheduler(LIMITS).abort("a")


def test_a_name_is_taken_until_its_request_ends() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add("a", 1, 1)
    with pytest.raises(ValueError, match="'a'; expected a new id"):
        scheduler.add("a", 1, 1)
    scheduler.step()
    scheduler.add("a", 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: 0; expected an integer >= 1"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens: 3; expected .* >= 4"),
        ({"num_blocks": 1}, "num_blocks: 1; expected an integer >= 2"),
        ({"watermark": 1.0}, "watermark: 1.0; expected 0 <= x < 1"),
        ({"enable_chunked_prefill": False}, "expected >= max_model_len"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_limits_are_refused(change: dict[str, Any], message: str) -> None:
    plain = {f.name: getattr(LIMITS, f.name) for f in fields(LIMITS)}
    with pytest.raises(ValueError, match=message):
        SchedulerLimits(**plain | change)


limits_strategy = st.builds(
    lambda seqs, extra, model_len, block, spare, threshold, watermark, switches: (
        SchedulerLimits(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + extra,
            max_model_len=model_len,
            # vLLM starts only if a request of max_model_len tokens fits.
            num_blocks=1 + -(-model_len // block) + spare,
            block_size=block,
            long_prefill_token_threshold=threshold,
            watermark=watermark,
            scheduler_reserve_full_isl=switches[0],
            enable_prefix_caching=switches[1],
            async_scheduling=switches[2],
        )
    ),
    st.integers(1, 12),
    st.integers(0, 100),
    st.integers(2, 120),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 20),
    st.sampled_from([0, 0, 7, 40]),
    st.sampled_from([0.0, 0.0, 0.1]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
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
    """In every step, tokens, blocks and sequences are within their limits. Requests
    that were never preempted are served in order, and some progress is made.
    """
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
                # All prompts begin with the same tokens, and every second request ends
                # unexpectedly, before its limit.
                limit = output + len(pending) % 2
                alike = range(limits.max_model_len)
                scheduler.add(
                    name, prompt, output, max_tokens=limit, block_hashes=alike
                )
                pending.pop(0)
                continue
            pending[0] = (name, gap - 1, prompt, output)
        step = scheduler.step()
        assert step.scheduled or step.preempted or step.finished, "no progress"
        assert step.num_scheduled_tokens <= limits.max_num_batched_tokens
        assert len(scheduler.running) <= limits.max_num_seqs
        held = {block for s in scheduler.running for block in s.blocks}
        assert len(held) + scheduler.free_blocks == limits.usable_blocks
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
        assert not done & set(step.sampled), "a finished request got a token"
        done |= set(step.finished)
    assert admitted == sorted(admitted, key=lambda name: int(name[1:]))
    assert done == set(outputs)
    for index, (_, prompt, output) in enumerate(requests):
        prompt = min(prompt, limits.max_model_len - 1)
        assert outputs[f"r{index}"] == min(output, limits.max_model_len - prompt)
