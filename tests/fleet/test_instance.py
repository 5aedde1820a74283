"""The fast instance makes the same decisions as the step-by-step scheduler and vLLM."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.scheduled import Step
from extproc.fleet.scheduler import Scheduler, SchedulerLimits
from extproc.fleet.steptime import Linear


@dataclass(frozen=True)
class Drawn:
    """A request; two requests have the same first tokens up to the end of their equal
    keys.
    """

    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    keys: tuple[Hashable, ...] = ()
    ends: tuple[int, ...] = ()
    reported_tokens: int = 0

    def block_hashes(self, block_size: int) -> list[Hashable]:
        hashes: list[Hashable] = []
        for key, end in zip(self.keys, self.ends, strict=True):
            hashes += [(key, index) for index in range(len(hashes), end // block_size)]
        return hashes

    def job(self, at_s: float, tag: object) -> Job:
        return Job(
            at_s,
            self.prompt_tokens,
            self.output_tokens,
            tag,
            Prefix(self.keys, self.ends, self.reported_tokens),
            is_open_ended=self.max_tokens > self.output_tokens,
        )


# The terms have very different sizes, so that two mistakes cannot cancel each other.
STEP_TIME = Linear(base_s=1.0, seq_s=0.01, token_s=0.003, context_s=1e-5, pair_s=1e-7)


class Reference:
    """The step-by-step scheduler with a clock that uses the same step-time formula."""

    def __init__(self, limits: SchedulerLimits, step_time: Linear) -> None:
        self.scheduler = Scheduler(limits)
        self.step_time = step_time
        self.now_s = 0.0
        self.end_s = 0.0
        self.first_token_s: dict[str, float] = {}
        self.finish_s: dict[str, float] = {}
        self.preemptions: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.decoding: set[str] = set()

    def add(self, name: str, at_s: float, request: Drawn) -> None:
        if not self.scheduler.running and not self.scheduler.waiting:
            self.now_s = max(self.now_s, at_s)
        self.scheduler.add(
            name,
            request.prompt_tokens,
            request.output_tokens,
            max_tokens=request.max_tokens,
            block_hashes=request.block_hashes(self.scheduler.limits.block_size),
            reported_tokens=request.reported_tokens,
        )

    def advance(self, until_s: float) -> None:
        scheduler = self.scheduler
        while self.now_s < until_s and (scheduler.running or scheduler.waiting):
            computed = {
                s.request_id: s.num_computed_tokens
                for s in (*scheduler.running, *scheduler.waiting)
            }
            known = {
                s.request_id: s.num_tokens
                for s in (*scheduler.running, *scheduler.waiting)
            }
            before_s = self.end_s
            step = scheduler.step()
            self.decoding -= set(step.preempted)
            for name, tokens in step.cached.items():
                computed[name] = tokens
                self.cached.setdefault(name, tokens)
            started_s = max(self.now_s, self.end_s)
            self.end_s = started_s + self.duration_s(step, computed)
            if scheduler.limits.async_scheduling:
                self.now_s, output_s = started_s, max(self.now_s, before_s)
            else:
                self.now_s = output_s = self.end_s
            for name, tokens in step.scheduled.items():
                if computed[name] + tokens >= known[name]:
                    self.decoding.add(name)
            for name in step.sampled:
                self.first_token_s.setdefault(name, output_s)
            for name in step.finished:
                self.finish_s[name] = output_s
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


def compare(limits: SchedulerLimits, requests: list[tuple[float, Drawn]]) -> Instance:
    """Check times, counts and queues of both simulators at every arrival."""
    reference = Reference(limits, STEP_TIME)
    instance = Instance(limits, STEP_TIME)
    jobs: dict[str, Job] = {}
    for index, (at_s, request) in enumerate(requests):
        reference.advance(at_s)
        instance.advance(at_s)
        agree(reference, instance)
        reference.add(f"r{index}", at_s, request)
        jobs[f"r{index}"] = request.job(at_s, index)
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
        assert job.cached_tokens == reference.cached[name]
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


def test_as_the_recordings_of_vllm(
    recording: dict[str, Any], recorded_limits: SchedulerLimits
) -> None:
    if recording.get("aborts") or recording.get("long_prefill_token_threshold"):
        pytest.skip("aborts and prefill thresholds are the scheduler's alone")
    limits = recorded_limits
    instance = Instance(limits, STEP_TIME)
    arrivals = sorted(recording["requests"], key=lambda r: r["step"])
    jobs: dict[str, Job] = {}
    preemptions = 0
    for now, expected in enumerate(recording["steps"]):
        while arrivals and arrivals[0]["step"] <= now:
            r = arrivals.pop(0)
            jobs[r["id"]] = drawn(r, limits).job(instance.now_s, r["id"])
            instance.add(jobs[r["id"]])
        instance.step()
        assert len(instance.running) == expected["running"], f"step {now}"
        assert len(instance.waiting) == expected["waiting"], f"step {now}"
        assert instance.free_blocks == expected["free_blocks"], f"step {now}"
        preemptions += len(expected["preempted"])
        assert instance.num_preemptions == preemptions, f"step {now}"
        finished = sorted(str(job.tag) for job in instance.finished)
        assert finished == expected["finished"], f"step {now}"
        instance.finished = []
        for name, tokens in expected.get("cached", {}).items():
            if jobs[name].num_preemptions == 0:
                assert jobs[name].cached_tokens == tokens, f"step {now}"


def drawn(recorded: dict[str, Any], limits: SchedulerLimits) -> Drawn:
    """Return a recorded request in which each block is a key."""
    prompt = recorded["prompt_tokens"]
    output = min(recorded["output_tokens"], limits.max_model_len - prompt)
    limit = recorded.get("max_tokens", recorded["output_tokens"])
    blocks = recorded.get("blocks", ())
    size = limits.block_size
    return Drawn(
        prompt,
        output,
        output if limit == recorded["output_tokens"] else limit,
        tuple(blocks),
        tuple(size * (index + 1) for index in range(len(blocks))),
    )


def test_as_the_scheduler_on_recorded_workloads(
    recording: dict[str, Any], recorded_limits: SchedulerLimits
) -> None:
    """The recorded arrival step becomes an arrival time in seconds, because the fast
    instance skips steps.
    """
    if recording.get("long_prefill_token_threshold"):
        pytest.skip("prefill thresholds are the scheduler's alone")
    limits = recorded_limits
    compare(
        limits,
        [
            (float(r["step"]), drawn(r, limits))
            for r in sorted(recording["requests"], key=lambda r: r["step"])
        ],
    )


LIMITS = st.builds(
    lambda seqs, extra, model_len, block, spare, watermark, reserve, cache, ahead: (
        SchedulerLimits(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + extra,
            max_model_len=model_len,
            num_blocks=1 + -(-model_len // block) + spare,
            block_size=block,
            watermark=watermark,
            scheduler_reserve_full_isl=reserve,
            enable_prefix_caching=cache,
            async_scheduling=ahead,
        )
    ),
    st.integers(1, 12),
    st.integers(0, 100),
    st.integers(2, 150),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.0, 0.1]),
    st.booleans(),
    st.sampled_from([True, True, False]),
    st.booleans(),
)


@st.composite
def workloads(draw: st.DrawFn, limits: SchedulerLimits) -> list[tuple[float, Drawn]]:
    """Draw requests that share their first tokens, or all tokens, with earlier ones."""
    requests: list[tuple[float, Drawn]] = []
    now_s = 0.0
    for index in range(draw(st.integers(1, 25))):
        now_s += draw(st.sampled_from([0.0, 0.3, 1.0, 5.0, 40.0]))
        prompt = min(draw(st.integers(1, 148)), limits.max_model_len - 1)
        output = draw(st.integers(1, 60))
        output = min(output, limits.max_model_len - prompt)
        keys: tuple[Hashable, ...] = ()
        ends: tuple[int, ...] = ()
        if requests and bool(draw(st.booleans())):
            like = requests[draw(st.integers(0, len(requests) - 1))][1]
            shared = draw(st.integers(0, len(like.keys)))
            keys, ends = like.keys[:shared], like.ends[:shared]
            if draw(st.booleans()):
                prompt, output = like.prompt_tokens, like.output_tokens
        total = prompt + output
        ends = tuple(end for end in ends if end <= total)
        keys = keys[: len(ends)]
        for _ in range(draw(st.integers(0, 3))):
            start = ends[-1] if ends else 0
            if start < total:
                ends += (draw(st.integers(start + 1, total)),)
                keys += ((index, len(keys)),)
        limit = output + draw(st.sampled_from([0, 0, 7]))
        reported = 0 if keys else draw(st.sampled_from([0, 0, 5, 40, 200]))
        requests.append((now_s, Drawn(prompt, output, limit, keys, ends, reported)))
    return requests


@settings(max_examples=200, deadline=None)
@given(st.data(), LIMITS)
def test_as_the_scheduler_for_any_workload(
    data: st.DataObject, limits: SchedulerLimits
) -> None:
    compare(limits, data.draw(workloads(limits)))


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


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_of_a_long_prompt_are_like_single_steps(*, ahead: bool) -> None:
    """Prompts of 16 and 40 chunks beside decoding requests, at once and step by step."""
    limits = SchedulerLimits(8, 64, 4096, 500, async_scheduling=ahead)
    step_time = Linear(0.01, 1e-3, 1e-4, 1e-6, 1e-8)
    instances = [Instance(limits, step_time) for _ in range(2)]
    for instance in instances:
        for arrival_s, prompt, output in (
            (0.0, 30, 200),
            (0.1, 1000, 20),
            (0.1, 2500, 5),
            (0.3, 20, 30),
        ):
            instance.add(Job(arrival_s, prompt, output))
    at_once, stepped = instances
    at_once.advance(math.inf)
    while stepped.running or stepped.waiting:
        stepped.step()
    for first, second in zip(at_once.finished, stepped.finished, strict=True):
        assert first.prompt_tokens == second.prompt_tokens
        assert first.first_token_s == pytest.approx(second.first_token_s)
        assert first.finish_s == pytest.approx(second.finish_s)
    assert at_once.computed_tokens == stepped.computed_tokens
    assert at_once.busy_s == pytest.approx(stepped.busy_s)
    assert at_once.running_s == pytest.approx(stepped.running_s)
    assert at_once.blocks_s == pytest.approx(stepped.blocks_s, rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    limits = SchedulerLimits(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=256, num_blocks=41
    )
    with pytest.raises(ValueError, match=r"200 \+ 57 tokens; expected at most"):
        Instance(limits, STEP_TIME).add(Job(0, 200, 57))
    with pytest.raises(ValueError, match=r"long_prefill_token_threshold.*expected 0"):
        Instance(
            SchedulerLimits(4, 64, 256, 41, long_prefill_token_threshold=8), STEP_TIME
        )
