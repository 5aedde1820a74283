"""The fast instance decides as the step-by-step scheduler does, and so as vLLM does."""

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet.instance import Instance, Job
from extproc.fleet.scheduler import Scheduler, SchedulerLimits, Step
from extproc.fleet.steptime import Linear

# Terms of very different size, so that no two mistakes can cancel.
STEP_TIME = Linear(base_s=1.0, seq_s=0.01, token_s=0.003, context_s=1e-5, pair_s=1e-7)


class Reference:
    """The scheduler under a clock: one step at a time, times from the same formula."""

    def __init__(self, limits: SchedulerLimits, step_time: Linear) -> None:
        self.scheduler = Scheduler(limits)
        self.step_time = step_time
        self.now_s = 0.0
        self.first_token_s: dict[str, float] = {}
        self.finish_s: dict[str, float] = {}
        self.preemptions: dict[str, int] = {}
        self.decoding: set[str] = set()

    def add(self, name: str, at_s: float, prompt: int, output: int) -> None:
        if not self.scheduler.running and not self.scheduler.waiting:
            self.now_s = max(self.now_s, at_s)
        self.scheduler.add(name, prompt, output)

    def advance(self, until_s: float) -> None:
        scheduler = self.scheduler
        while self.now_s < until_s and (scheduler.running or scheduler.waiting):
            computed = {
                s.request_id: s.num_computed_tokens
                for s in (*scheduler.running, *scheduler.waiting)
            }
            step = scheduler.step()
            self.decoding -= set(step.preempted)
            self.now_s += self.duration_s(step, computed)
            self.decoding |= set(step.sampled)
            for name in step.sampled:
                self.first_token_s.setdefault(name, self.now_s)
            for name in step.finished:
                self.finish_s[name] = self.now_s
            for name in step.preempted:
                self.preemptions[name] = self.preemptions.get(name, 0) + 1

    def duration_s(self, step: Step, computed: dict[str, int]) -> float:
        decoding = context = prefill = 0
        pairs = 0.0
        for name, tokens in step.scheduled.items():
            if name in self.decoding:
                decoding += 1
                context += computed[name]
            else:
                prefill += tokens
                pairs += tokens * (computed[name] + (tokens + 1) / 2)
        if not step.scheduled:
            return 0.0
        return (
            self.step_time.fixed_s(prefill, decoding)
            + self.step_time.context_s * context
            + self.step_time.pair_s * pairs
        )


def compare(
    limits: SchedulerLimits, requests: list[tuple[float, int, int]]
) -> Instance:
    """Run both; every time, count and queue must agree at every arrival."""
    reference = Reference(limits, STEP_TIME)
    instance = Instance(limits, STEP_TIME)
    jobs: dict[str, Job] = {}
    for index, (at_s, prompt, output) in enumerate(requests):
        reference.advance(at_s)
        instance.advance(at_s)
        agree(reference, instance)
        reference.add(f"r{index}", at_s, prompt, output)
        jobs[f"r{index}"] = Job(at_s, prompt, output, tag=index)
        instance.add(jobs[f"r{index}"])
    reference.advance(math.inf)
    instance.advance(math.inf)
    agree(reference, instance)
    assert len(instance.finished) == len(requests)
    assert instance.free_blocks == limits.usable_blocks
    for name, job in jobs.items():
        assert job.first_token_s == pytest.approx(reference.first_token_s[name])
        assert job.finish_s == pytest.approx(reference.finish_s[name])
        assert job.num_preemptions == reference.preemptions.get(name, 0)
        assert job.arrival_s <= job.first_step_s < job.first_token_s <= job.finish_s
    return instance


def agree(reference: Reference, instance: Instance) -> None:
    scheduler = reference.scheduler
    assert instance.now_s == pytest.approx(reference.now_s)
    assert len(instance.running) == len(scheduler.running)
    assert len(instance.waiting) == len(scheduler.waiting)
    assert instance.free_blocks == scheduler.free_blocks
    assert [f"r{job.tag}" for job in instance.running] == [
        sequence.request_id for sequence in scheduler.running
    ]


def test_as_the_recordings_of_vllm(recording: dict[str, Any]) -> None:
    """One step lasts one second here, so a request of step n arrives at n seconds."""
    if recording.get("aborts") or recording.get("long_prefill_token_threshold"):
        pytest.skip("aborts and prefill thresholds are the scheduler's alone")
    known = {field.name for field in fields(SchedulerLimits)}
    limits = SchedulerLimits(**{k: v for k, v in recording.items() if k in known})
    instance = Instance(limits, Linear(base_s=1.0, seq_s=0.0))
    arrivals = sorted(recording["requests"], key=lambda r: r["step"])
    finished_at: dict[str, int] = {}
    preemptions = 0
    for now, expected in enumerate(recording["steps"]):
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            output = min(r["output_tokens"], limits.max_model_len - r["prompt_tokens"])
            instance.add(Job(now, r["prompt_tokens"], output, tag=r["id"]))
        instance.advance(now + 0.5)
        assert len(instance.running) == expected["running"], f"step {now}"
        assert len(instance.waiting) == expected["waiting"], f"step {now}"
        assert instance.free_blocks == expected["free_blocks"], f"step {now}"
        preemptions += len(expected["preempted"])
        assert instance.num_preemptions == preemptions, f"step {now}"
        finished_at |= dict.fromkeys(expected["finished"], now)
    assert {job.tag: job.finish_s - 1 for job in instance.finished} == finished_at


LIMITS = st.builds(
    lambda seqs, extra, model_len, block, spare, watermark, reserve: SchedulerLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + extra,
        max_model_len=model_len,
        num_blocks=1 + -(-model_len // block) + spare,
        block_size=block,
        watermark=watermark,
        scheduler_reserve_full_isl=reserve,
    ),
    st.integers(1, 12),
    st.integers(0, 100),
    st.integers(2, 150),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.0, 0.1]),
    st.booleans(),
)
REQUESTS = st.lists(
    st.tuples(st.floats(0, 40), st.integers(1, 148), st.integers(1, 60)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(LIMITS, REQUESTS)
def test_as_the_scheduler_for_any_workload(
    limits: SchedulerLimits, requests: list[tuple[float, int, int]]
) -> None:
    now_s = 0.0
    fitted = []
    for gap_s, prompt, output in requests:
        now_s += gap_s
        prompt = min(prompt, limits.max_model_len - 1)
        fitted.append((now_s, prompt, min(output, limits.max_model_len - prompt)))
    compare(limits, fitted)


def test_a_lone_request_takes_its_prefill_and_its_steps() -> None:
    limits = SchedulerLimits(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=256, num_blocks=41
    )
    instance = Instance(limits, Linear(base_s=1.0, seq_s=0.0))
    job = Job(10.0, 100, 5)
    instance.add(job)
    instance.advance(math.inf)
    assert (job.first_step_s, job.first_token_s, job.finish_s) == (10, 12, 16)
    assert instance.busy_s == 6
    assert instance.computed_tokens == 100 + 4


def test_what_does_not_fit_is_refused() -> None:
    limits = SchedulerLimits(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=256, num_blocks=41
    )
    with pytest.raises(ValueError, match=r"200 \+ 57 tokens, expected at most"):
        Instance(limits, STEP_TIME).add(Job(0, 200, 57))
    with pytest.raises(ValueError, match="long_prefill_token_threshold: expected 0"):
        Instance(
            SchedulerLimits(4, 64, 256, 41, long_prefill_token_threshold=8), STEP_TIME
        )
