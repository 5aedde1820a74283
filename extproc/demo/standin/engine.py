"""A vLLM engine without a model: ``fleet``'s scheduler, run in real time.

Each step takes the time that the model of step times predicts. Requests that arrive
during a step join the next step. Requests therefore queue, share steps, are preempted
and finish as in vLLM, in vLLM's time divided by ``speed``.
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
    """Seconds of each step: a constant (weights), plus terms per sequence and token.

    The defaults are those of the A100 in the routing papers (arXiv 2604.09613: 8 ms +
    0.65 ms for each sequence in an iteration); 20 us for each prefill token equal
    50,000 tokens a second.
    """

    weights_s: float = 0.008
    sequence_s: float = 0.00065
    prefill_token_s: float = 0.00002
    speed: float = 1.0
    """Factor by which steps are faster than the times above; > 0."""

    def of(self, step: Step) -> float:
        """Return the seconds of a step."""
        prefill = step.num_scheduled_tokens - len(step.scheduled)
        seconds = (
            self.weights_s
            + self.sequence_s * len(step.scheduled)
            + self.prefill_token_s * max(prefill, 0)
        )
        return seconds / self.speed


@dataclass(slots=True)
class EngineTotals:
    """Totals since the engine started."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0


class Generation:
    """A request's sequences: iterate to get tokens, leave the context to abort."""

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
        """Yield the index of the sequence that grew, once for each token."""
        while self._unfinished:
            position, last = await self._tokens.get()
            self._unfinished -= last
            yield position

    def put(self, request_id: str, *, last: bool) -> None:
        """Deliver one token."""
        self._tokens.put_nowait((self._positions[request_id], last))


class Engine:
    """Runs a scheduler in real time. Use it from one event loop only."""

    def __init__(
        self,
        limits: SchedulerLimits,
        step_time: StepTime,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A prompt that does not fit even into an empty cache would block the queue.
        if limits.usable_tokens < limits.max_model_len:
            raise ValueError(
                f"num_blocks: {limits.num_blocks}; expected enough for one request of "
                f"max_model_len {limits.max_model_len}"
            )
        # A step's tokens are delivered when the step ends, before the next one is
        # scheduled.
        self.limits = replace(limits, async_scheduling=False)
        self.scheduler = Scheduler(self.limits)
        self.totals = EngineTotals()
        self._step_time = step_time
        self._clock = clock
        self._generations: dict[str, Generation] = {}
        self._ids = itertools.count(1)
        self._work = asyncio.Event()

    def submit(self, sequences: Iterable[tuple[int, int]]) -> Generation:
        """Queue sequences, each with a prompt and an output length in tokens (> 0)."""
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
        """Abort sequences; those that have finished are ignored."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)
            self._generations.pop(request_id, None)

    async def run(self) -> None:
        """Run steps until cancelled."""
        due = self._clock()
        while True:
            step = self.scheduler.step()
            if not step.scheduled:
                self._work.clear()
                await self._work.wait()
                due = self._clock()
                continue
            # The time is counted from the end of the last step, so that late wake-ups
            # do not add up. An engine that falls far behind does not catch up by faster
            # steps.
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
