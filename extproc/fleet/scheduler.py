"""vLLM's v1 scheduler, one step at a time.

The model: a request has computed tokens and known tokens (prompt plus output so
far); a step assigns tokens, within ``max_num_batched_tokens``, so that the first
catches up with the second. There is no prefill phase and no decode phase. Running
requests come first, in order of admission; each takes the KV blocks that its new
tokens need, and where none is left the request admitted last is preempted: its
blocks are freed, its computed tokens forgotten, and it goes to the head of the
waiting queue to be computed again. Then, if nothing was preempted, waiting requests
are admitted, first come first served, until the head of the queue does not fit.

Source: ``vllm/v1/core/sched/scheduler.py`` (``schedule``, ``update_from_output``),
``vllm/v1/core/kv_cache_manager.py`` (``allocate_slots``) and
``vllm/v1/core/sched/utils.py`` (``check_stop``) of vLLM 0.32.0, for a dense
full-attention model with prefix caching, speculative decoding, pipeline parallelism
and asynchronous scheduling off. ``tests/fleet`` replays recordings of that code.

Not thread-safe; nothing here reads a clock. How long a step takes is the caller's
business (see :mod:`extproc.fleet.hardware`).
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What bounds a vLLM instance, under vLLM's own names.

    Attributes:
        max_num_seqs: requests that may run at once (> 0).
        max_num_batched_tokens: tokens of one step (>= ``max_num_seqs``).
        max_model_len: prompt plus output tokens of one request (> 1).
        num_blocks: KV-cache blocks of the instance, the null block included, so that
            one fewer can be used (> 1).
        block_size: tokens of one block (> 0).
        long_prefill_token_threshold: tokens that one request may take of a step in
            which it is not alone; 0 for no such limit.
        watermark: share of ``num_blocks`` kept free when a request is admitted while
            others run, in [0, 1).
        scheduler_reserve_full_isl: whether a request is admitted only if blocks for
            all its known tokens are free, not only for its first chunk.
        enable_chunked_prefill: whether a prompt may be split over several steps.

    Raises:
        ValueError: naming the limit, its value and what is accepted.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int = 16
    long_prefill_token_threshold: int = 0
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    enable_chunked_prefill: bool = True

    def __post_init__(self) -> None:
        accepted = {
            "max_num_seqs": 1,
            "max_model_len": 2,
            "num_blocks": 2,
            "block_size": 1,
            "long_prefill_token_threshold": 0,
            # vLLM refuses a step too small for one token of each sequence.
            "max_num_batched_tokens": self.max_num_seqs,
        }
        for name, least in accepted.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected an integer >= {least}"
                )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark: {self.watermark}, expected 0 <= x < 1")
        if (
            not self.enable_chunked_prefill
            and self.max_num_batched_tokens < self.max_model_len
        ):
            raise ValueError(
                f"max_num_batched_tokens: {self.max_num_batched_tokens}, expected >= "
                f"max_model_len ({self.max_model_len}) without chunked prefill"
            )

    @property
    def usable_blocks(self) -> int:
        """KV blocks that requests can hold: all but vLLM's null block."""
        return self.num_blocks - 1

    @property
    def usable_tokens(self) -> int:
        """Tokens whose keys and values fit in the usable blocks."""
        return self.usable_blocks * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that ``tokens`` tokens of one request take."""
        return -(-tokens // self.block_size)


class Status(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the scheduler.

    Attributes:
        request_id: unique among those that are not finished.
        prompt_tokens: tokens of the prompt (> 0).
        output_tokens: tokens after which it stops by itself (> 0): the smaller of
            ``max_tokens`` and the length the model would have given it.
        num_output_tokens: output tokens so far; they survive a preemption.
        num_computed_tokens: tokens whose keys and values are in the cache.
        num_blocks: KV blocks held.
        num_preemptions: times evicted.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_blocks: int = 0
    num_preemptions: int = 0
    status: Status = Status.WAITING

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and the output so far."""
        return self.prompt_tokens + self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        scheduled: tokens computed for each request, in the order of scheduling.
        context_tokens: tokens in the cache of the scheduled requests before the
            step, which attention has to read.
        preempted: requests evicted before the step ran.
        sampled: requests that produced one output token.
        finished: requests that ended with that token.
    """

    scheduled: dict[str, int]
    context_tokens: int
    preempted: tuple[str, ...]
    sampled: tuple[str, ...]
    finished: tuple[str, ...]

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(self.scheduled.values())


class Scheduler:
    """The queues and the KV blocks of one vLLM instance.

    ``add`` and ``abort`` at any time between two calls of ``step``.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.free_blocks = limits.usable_blocks
        self._sequences: dict[str, Sequence] = {}
        self._watermark_blocks = int(limits.watermark * limits.num_blocks)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the usable KV blocks that is held, 0 to 1."""
        return 1.0 - self.free_blocks / self.limits.usable_blocks

    def get(self, request_id: str) -> Sequence | None:
        """Return the unfinished sequence of that name, if there is one."""
        return self._sequences.get(request_id)

    def add(self, request_id: str, prompt_tokens: int, output_tokens: int) -> Sequence:
        """Queue a request.

        A prompt of ``max_model_len`` or more tokens is what vLLM's front end answers
        with a 400, and it bounds ``max_tokens`` by the rest; the scheduler itself
        ends a request at ``max_model_len`` tokens.

        Raises:
            ValueError: the name is taken, or a count is below 1.
        """
        if request_id in self._sequences:
            raise ValueError(f"request_id: {request_id!r} is already queued")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"request {request_id!r}: {prompt_tokens} prompt and {output_tokens} "
                "output tokens, expected at least 1 of each"
            )
        sequence = Sequence(request_id, prompt_tokens, output_tokens)
        self._sequences[request_id] = sequence
        self.waiting.append(sequence)
        return sequence

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is not here."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._finish(sequence)
        return True

    def step(self) -> Step:
        """Schedule once, run the step and take its output.

        With nothing to do, or with a head of the queue that can never fit, the step
        has no scheduled tokens.
        """
        scheduled: list[tuple[Sequence, int]] = []
        preempted: list[Sequence] = []
        budget = self._schedule_running(scheduled, preempted)
        if not preempted:
            self._schedule_waiting(scheduled, budget)
        context_tokens = sum(sequence.num_computed_tokens for sequence, _ in scheduled)
        sampled, finished = self._complete(scheduled)
        return Step(
            scheduled={sequence.request_id: n for sequence, n in scheduled},
            context_tokens=context_tokens,
            preempted=tuple(sequence.request_id for sequence in preempted),
            sampled=tuple(sampled),
            finished=tuple(finished),
        )

    def _schedule_running(
        self, scheduled: list[tuple[Sequence, int]], preempted: list[Sequence]
    ) -> int:
        """Give running requests their tokens; return what is left of the budget."""
        budget = self.limits.max_num_batched_tokens
        longest_chunk = self._longest_chunk()
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            tokens = min(
                sequence.num_tokens - sequence.num_computed_tokens,
                longest_chunk,
                budget,
                # One position is kept for the token that the step will sample.
                self.limits.max_model_len - 1 - sequence.num_computed_tokens,
            )
            if tokens > 0:
                if not self._make_room(sequence, tokens, preempted):
                    break
                scheduled.append((sequence, tokens))
                budget -= tokens
            index += 1
        return budget

    def _make_room(
        self, sequence: Sequence, tokens: int, preempted: list[Sequence]
    ) -> bool:
        """Allocate for a running request, preempting from the tail of the queue.

        False if the request itself had to go.
        """
        while not self._allocate(sequence, tokens, spare_blocks=0):
            victim = self.running.pop()
            self._free(victim)
            victim.num_computed_tokens = 0
            victim.num_preemptions += 1
            victim.status = Status.PREEMPTED
            self.waiting.appendleft(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _schedule_waiting(
        self, scheduled: list[tuple[Sequence, int]], budget: int
    ) -> None:
        """Admit from the head of the waiting queue while everything fits."""
        longest_chunk = self._longest_chunk()
        while (
            self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs
        ):
            sequence = self.waiting[0]
            tokens = min(sequence.num_tokens, longest_chunk)
            if tokens > budget and not self.limits.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            spare_blocks = self._watermark_blocks if self.running else 0
            if self.limits.scheduler_reserve_full_isl:
                whole = min(sequence.num_tokens, self.limits.max_model_len)
                needed_blocks = self.limits.blocks_for(whole)
                if needed_blocks + spare_blocks > self.free_blocks:
                    break
            if not self._allocate(sequence, tokens, spare_blocks):
                break
            self.waiting.popleft()
            sequence.status = Status.RUNNING
            self.running.append(sequence)
            scheduled.append((sequence, tokens))
            budget -= tokens

    def _longest_chunk(self) -> int:
        """Tokens that one request may take: vLLM spares one that is alone."""
        threshold = self.limits.long_prefill_token_threshold
        if threshold > 0 and len(self.running) + len(self.waiting) > 1:
            return threshold
        return self.limits.max_num_batched_tokens

    def _allocate(self, sequence: Sequence, tokens: int, spare_blocks: int) -> bool:
        """Take the blocks for ``tokens`` more tokens, if so many are free."""
        slots = min(sequence.num_computed_tokens + tokens, self.limits.max_model_len)
        blocks = max(self.limits.blocks_for(slots) - sequence.num_blocks, 0)
        if blocks + spare_blocks > self.free_blocks:
            return False
        self.free_blocks -= blocks
        sequence.num_blocks += blocks
        return True

    def _free(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.num_blocks
        sequence.num_blocks = 0

    def _finish(self, sequence: Sequence) -> None:
        self._free(sequence)
        sequence.status = Status.FINISHED
        del self._sequences[sequence.request_id]

    def _complete(
        self, scheduled: list[tuple[Sequence, int]]
    ) -> tuple[list[str], list[str]]:
        """Advance what was scheduled, sample where it caught up, end what is done."""
        sampled: list[str] = []
        finished: list[str] = []
        for sequence, tokens in scheduled:
            sequence.num_computed_tokens += tokens
            if sequence.num_computed_tokens < sequence.num_tokens:
                continue
            sequence.num_output_tokens += 1
            sampled.append(sequence.request_id)
            if (
                sequence.num_output_tokens >= sequence.output_tokens
                or sequence.num_tokens >= self.limits.max_model_len
            ):
                finished.append(sequence.request_id)
                self._finish(sequence)
        if finished:
            self.running = [s for s in self.running if s.status is Status.RUNNING]
        return sampled, finished
