"""A vLLM engine without a model: ``fleet``'s scheduler, run in real time.

Each step takes as long as the step time says; whatever arrives meanwhile joins the
next one. So requests queue, share a step, are preempted and finish as they do in
vLLM, in the time that vLLM would take, divided by ``speed``.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from extproc.fleet.scheduled import Step
from extproc.fleet.scheduler import Scheduler, SchedulerLimits

_CATCH_UP_S = 0.005


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds that one step takes: weights, plus what each sequence and token adds.

    The defaults are the A100 of the routing papers (arXiv 2604.09613: an iteration of
    8 ms + 0.65 ms for each sequence); 20 us for a prefill token are 50,000 a second.
    """

    weights_s: float = 0.008
    sequence_s: float = 0.00065
    prefill_token_s: float = 0.00002
    speed: float = 1.0
    """How many times faster than that; > 0."""

    def of(self, step: Step) -> float:
        """Seconds of a step."""
        prefill = step.num_scheduled_tokens - len(step.scheduled)
        whole = (
            self.weights_s
            + self.sequence_s * len(step.scheduled)
            + self.prefill_token_s * max(prefill, 0)
        )
        return whole / self.speed


@dataclass(slots=True)
class EngineTotals:
    """What an engine has done since it started."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0


class Generation:
    """The sequences of one request: iterate for their tokens; leave to abort them."""

    def __init__(self, engine: Engine, request_ids: Sequence[str]) -> None:
        self._engine = engine
        self._positions = {request_id: i for i, request_id in enumerate(request_ids)}
        self._unfinished = len(request_ids)
        self._tokens: asyncio.Queue[tuple[int, bool]] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine.abort(self._positions)

    async def __aiter__(self) -> AsyncIterator[int]:
        """Yield the position of the sequence that grew, once for each token."""
        while self._unfinished:
            position, last = await self._tokens.get()
            self._unfinished -= last
            yield position

    def put(self, request_id: str, *, last: bool) -> None:
        """Deliver one token."""
        self._tokens.put_nowait((self._positions[request_id], last))


class Engine:
    """Runs a scheduler against the clock. One event loop only."""

    def __init__(
        self,
        limits: SchedulerLimits,
        step_time: StepTime,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A prompt that no number of free blocks can hold would block the queue.
        if limits.usable_tokens < limits.max_model_len:
            raise ValueError(
                f"num_blocks: {limits.num_blocks}; expected enough for one request of "
                f"max_model_len {limits.max_model_len}"
            )
        # A step's tokens are delivered when it ends, before the next is scheduled.
        self.limits = replace(limits, async_scheduling=False)
        self.scheduler = Scheduler(self.limits)
        self.totals = EngineTotals()
        self._step_time = step_time
        self._clock = clock
        self._generations: dict[str, Generation] = {}
        self._ids = itertools.count(1)
        self._work = asyncio.Event()

    def submit(self, sequences: Iterable[tuple[int, int]]) -> Generation:
        """Queue sequences, each of prompt tokens and output tokens (all > 0)."""
        request_ids = []
        for prompt_tokens, output_tokens in sequences:
            request_id = str(next(self._ids))
            self.scheduler.add(request_id, prompt_tokens, output_tokens)
            self.totals.prompt_tokens += prompt_tokens
            request_ids.append(request_id)
        generation = Generation(self, request_ids)
        self._generations.update(dict.fromkeys(request_ids, generation))
        self._work.set()
        return generation

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget sequences, finished or not."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)
            self._generations.pop(request_id, None)

    async def run(self) -> None:
        """Step for ever; cancel to stop."""
        due = self._clock()
        while True:
            step = self.scheduler.step()
            if not step.scheduled:
                self._work.clear()
                await self._work.wait()
                due = self._clock()
                continue
            # From the last step's end rather than from now, so that late wake-ups do
            # not add up; but an engine that cannot keep up does not rush either.
            due = max(due, self._clock() - _CATCH_UP_S) + self._step_time.of(step)
            await asyncio.sleep(max(due - self._clock(), 0))
            self._deliver(step)

    def _deliver(self, step: Step) -> None:
        finished = set(step.finished)
        self.totals.preemptions += len(step.preempted)
        self.totals.generation_tokens += len(step.sampled)
        for request_id in step.sampled:
            generation = self._generations.get(request_id)
            if generation is not None:
                generation.put(request_id, last=request_id in finished)
