"""One vLLM instance in simulated time, many steps at once.

It decides exactly as :class:`extproc.fleet.scheduler.Scheduler` does (the tests hold
the two, and the recordings of vLLM, against each other) but does not visit every
request at every step. That works because, without ``long_prefill_token_threshold``, at
most one running request has part of its prompt left, the one admitted last; every other
running request computes exactly one token a step. So a decoding request is two numbers,
the count of steps at which it will end and how its computed tokens relate to that
count; KV demand is a histogram of positions within a block; context is a sum. A stretch
of steps in which nothing is admitted, evicted or finished is then one jump, with its
duration in closed form (:class:`extproc.fleet.steptime.StepTime` is linear in context).

With asynchronous scheduling, a step is scheduled when the one before it starts, and the
output of that one is taken when the next one has been scheduled. So a request that
arrives joins the step after the next, and one that ends is in one more step: it
computes one more token if it ends by an end-of-sequence token, and none otherwise.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

from extproc.fleet.prefix_cache import Found, Holding, Prefix, PrefixCache
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime

#: More than the admissions of an instance: cached after all else that a step caches.
_LATE = 1 << 60
_NOTHING = Found()


@dataclass(slots=True, eq=False)
class Job:
    """One request in an instance.

    Attributes:
        arrival_s: when it reached the instance.
        prompt_tokens, output_tokens: both at least 1; together at most
            ``max_model_len``.
        tag: whatever the caller wants to find again.
        prefix: what its tokens have in common with others'; None for nothing.
        is_open_ended: whether it ends by an end-of-sequence token, which a scheduler
            that is a step ahead does not foresee, rather than at its ``max_tokens``.
        first_step_s: start of the first step that computed a token of it; NaN before.
        first_token_s: end of the step that produced its first output token.
        finish_s: end of the step that produced its last one.
        cached_tokens: of the prompt, found in the prefix cache when it was admitted.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    tag: object = None
    prefix: Prefix | None = None
    is_open_ended: bool = False
    first_step_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    cached_tokens: int = 0
    num_preemptions: int = 0
    # Known tokens (prompt and output so far) and computed ones, while not decoding.
    known: int = 0
    computed: int = 0
    # While decoding, computed tokens are the instance's step count plus this.
    offset: int = 0
    # Entries of the finish heap that carry another value are stale.
    admission: int = 0
    holding: Holding | None = None

    @property
    def tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.output_tokens


class Instance:
    """Queues, KV blocks and clock of one instance.

    ``now_s`` is when the next step is scheduled while requests are in: at the end of
    the last step or, with asynchronous scheduling, at its start. Finished jobs gather
    in ``finished`` until the caller takes them.

    Raises:
        ValueError: for limits that break the premise above.
    """

    def __init__(self, limits: SchedulerLimits, step_time: StepTime) -> None:
        if limits.long_prefill_token_threshold or not limits.enable_chunked_prefill:
            raise ValueError(
                "long_prefill_token_threshold: expected 0, and chunked prefill on: "
                "use extproc.fleet.scheduler for anything else"
            )
        self.limits = limits
        self.step_time = step_time
        self.now_s = 0.0
        self.free_blocks = limits.usable_blocks
        self.running: dict[Job, None] = {}  # in order of admission
        self.waiting: deque[Job] = deque()
        self.finished: list[Job] = []
        self.num_preemptions = 0
        self.num_steps = 0  # the count that decoding jobs are relative to
        self.busy_s = 0.0
        self.running_s = 0.0  # running requests, integrated over time
        self.blocks_s = 0.0  # held KV blocks, integrated over time
        self.computed_tokens = 0
        self._end_s = 0.0  # of the last step scheduled
        self._partial: Job | None = None
        # Whose last token is computed but not known: a place and blocks, no tokens.
        self._ending: dict[Job, None] = {}
        self._evicted_at_end: list[Job] = []
        self._phases = [0] * limits.block_size
        self._offsets = 0
        self._finishes: list[tuple[int, int, Job]] = []
        self._admissions = 0
        self._watermark_blocks = int(limits.watermark * limits.num_blocks)
        self._async = limits.async_scheduling
        self._cache = (
            PrefixCache(limits.block_size) if limits.enable_prefix_caching else None
        )

    def __len__(self) -> int:
        """Requests in the instance, running and waiting."""
        return len(self.running) + len(self.waiting)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the usable KV blocks that is held, 0 to 1."""
        return 1.0 - self.free_blocks / self.limits.usable_blocks

    def add(self, job: Job) -> None:
        """Queue a job that arrives after all steps that started before it.

        Raises:
            ValueError: it does not fit ``max_model_len``.
        """
        if job.tokens > self.limits.max_model_len:
            raise ValueError(
                f"{job.prompt_tokens} + {job.output_tokens} tokens, expected at most "
                f"max_model_len ({self.limits.max_model_len})"
            )
        if not self.running and not self.waiting:
            self.now_s = max(self.now_s, job.arrival_s)
        job.known = job.prompt_tokens
        if self._cache is not None:
            job.holding = self._cache.enter(job.prefix)
        self.waiting.append(job)

    def advance(self, until_s: float) -> None:
        """Run every step that is scheduled before ``until_s``."""
        while self.now_s < until_s and (self.running or self.waiting):
            if self._partial is None and self._is_head_held_back():
                self._decode(until_s)
            else:
                self.step()

    def _is_head_held_back(self) -> bool:
        """Whether nothing can be admitted until a running request ends."""
        if not self.waiting:
            return True
        if self._ending or not self.running:
            return False
        if len(self.running) >= self.limits.max_num_seqs:
            return True
        job = self.waiting[0]
        found = _NOTHING
        if self._cache is not None:
            found = self._find(job, self._cached_step - 1)
        if not found.is_final:
            return False
        tokens = job.known
        if not self.limits.scheduler_reserve_full_isl:
            budget = self.limits.max_num_batched_tokens - len(self.running)
            tokens = min(tokens, found.blocks * self.limits.block_size + budget)
        needed = self.limits.blocks_for(tokens) - found.held + self._watermark_blocks
        return needed > self.free_blocks

    def _decode(self, until_s: float) -> None:
        """Take steps that only decode: to the first end, eviction or ``until_s``."""
        block_size = self.limits.block_size
        if self._ending:
            # They hold their blocks while the first step is scheduled.
            demand = self._phases[-self.num_steps % block_size]
            if len(self.running) == len(self._ending) or demand > self.free_blocks:
                self.step()
                return
            self._take_blocks(demand)
            for job in self._ending:
                self._end(job, self.num_steps)
            self._ending.clear()
            self.free_blocks += demand
        seqs = len(self.running)
        steps = self._steps_to_finish()
        if self.free_blocks < seqs * (steps // block_size + 1):
            steps = min(steps, self._steps_to_full())
            if steps == 0:
                self.step()
                return
        step_time = self.step_time
        context_s = step_time.context_s
        first_s = step_time.fixed_s(0, seqs) + context_s * self._context(seqs)
        growth_s = context_s * seqs
        duration_s = steps * first_s + growth_s * steps * (steps - 1) / 2
        # The step after the first is scheduled when the first ends or, if steps are
        # scheduled a step ahead, when it starts.
        ahead = 1 if self._async else 0
        span_s = until_s - (self._end_s if ahead else self.now_s)
        if steps > ahead and duration_s > span_s:
            left = steps - ahead
            steps = ahead
            if span_s > 0:
                steps += _steps_until(span_s, first_s, growth_s, left)
            duration_s = steps * first_s + growth_s * steps * (steps - 1) / 2
        # Each sequence needs a block every block_size steps, and the rest by phase.
        cycles, rest = divmod(steps, block_size)
        start = self.num_steps
        self.free_blocks -= cycles * seqs + sum(
            self._phases[-(start + step) % block_size] for step in range(rest)
        )
        if self._cache is not None and self._cache.free > self.free_blocks:
            self._cache.trim(self.free_blocks)
        self.computed_tokens += seqs * steps
        last_s = first_s + growth_s * (steps - 1)
        self._elapse(duration_s, steps, seqs, last_s)
        self._end_finished()

    def _steps_to_finish(self) -> int:
        """Steps until the first running request ends (all running ones decode)."""
        finishes = self._finishes
        while finishes[0][2].admission != finishes[0][1]:
            heappop(finishes)
        return finishes[0][0] - self.num_steps

    def _steps_to_full(self) -> int:
        """Decoding steps that the free blocks are enough for."""
        block_size = self.limits.block_size
        cycles, left = divmod(self.free_blocks, len(self.running))
        steps = cycles * block_size
        for step in range(block_size):
            left -= self._phases[-(self.num_steps + step) % block_size]
            if left < 0:
                return steps + step
        return steps + block_size  # pragma: no cover  left < one cycle's demand

    def _context(self, seqs: int) -> int:
        """Computed tokens of the ``seqs`` requests that decode."""
        return seqs * self.num_steps + self._offsets

    def step(self) -> None:
        """Schedule and run one step, whatever it holds."""
        seqs = len(self.running) - len(self._ending) - (self._partial is not None)
        demand = self._phases[-self.num_steps % self.limits.block_size]
        chunks: list[tuple[Job, int]] = []
        evicted = False
        if demand > self.free_blocks:
            evicted = self._evict_for_decoding(chunks)
            seqs = len(self.running) - len(self._ending) - (self._partial is not None)
        else:
            if demand:
                self._take_blocks(demand)
            budget = self.limits.max_num_batched_tokens - seqs
            if self._partial is not None:
                budget, evicted = self._continue_partial(chunks, budget)
            if not evicted and self.waiting:
                self._admit(chunks, budget)
        tokens = 0
        pairs = 0.0
        for job, chunk in chunks:
            tokens += chunk
            pairs += chunk * (job.computed + (chunk + 1) / 2)
        if tokens + seqs:
            duration_s = (
                self.step_time.fixed_s(tokens, seqs)
                + self.step_time.context_s * self._context(seqs)
                + self.step_time.pair_s * pairs
            )
            self.computed_tokens += tokens + seqs
            self._elapse(duration_s, 1, seqs + len(chunks), duration_s)
        elif self._ending or self._evicted_at_end:
            self._elapse(0.0, 1, 0, 0.0)
        else:
            return
        self._partial = None
        self._end_finished(chunks)

    def _elapse(self, duration_s: float, steps: int, seqs: int, last_s: float) -> None:
        """Let steps pass, of which the last one takes ``last_s``."""
        started_s = self._end_s if self._end_s > self.now_s else self.now_s
        self.now_s = self._end_s = started_s + duration_s
        if self._async:
            self.now_s = started_s if steps == 1 else self._end_s - last_s
        self.num_steps += steps
        self.busy_s += duration_s
        self.running_s += seqs * duration_s
        held = self.limits.usable_blocks - self.free_blocks
        self.blocks_s += held * duration_s

    def _take_blocks(self, count: int) -> None:
        self.free_blocks -= count
        cache = self._cache
        if cache is not None and cache.free > self.free_blocks:
            cache.trim(self.free_blocks)

    def _free(self, job: Job, computed: int) -> None:
        """Give back the blocks of so many tokens, but for those that others hold."""
        blocks = self.limits.blocks_for(computed)
        if self._cache is not None:
            assert job.holding is not None
            blocks -= job.holding.hashed
            blocks += self._cache.release(job.holding)
        self.free_blocks += blocks

    def _find(self, job: Job, step: int) -> Found:
        """What is cached of a waiting job; its last token has to be computed."""
        assert self._cache is not None
        assert job.holding is not None
        most = (job.known - 1) // self.limits.block_size
        return self._cache.find(job.holding, most, step)

    def _continue_partial(
        self, chunks: list[tuple[Job, int]], budget: int
    ) -> tuple[int, bool]:
        """Go on with the prompt admitted last; evict it if its blocks are not free."""
        job = self._partial
        assert job is not None
        chunk = min(job.known - job.computed, budget)
        needed = self._blocks_for_chunk(job, chunk)
        if needed > self.free_blocks:
            self._evict(job)
            return budget, True
        self._take_chunk(job, chunk, needed)
        chunks.append((job, chunk))
        return budget - chunk, False

    def _blocks_for_chunk(self, job: Job, chunk: int) -> int:
        blocks_for = self.limits.blocks_for
        return blocks_for(job.computed + chunk) - blocks_for(job.computed)

    def _take_chunk(self, job: Job, chunk: int, blocks: int) -> None:
        """Allocate for a chunk, whose full blocks are cached at once."""
        self.free_blocks -= blocks
        cache = self._cache
        if cache is not None:
            if cache.free > self.free_blocks:
                cache.trim(self.free_blocks)
            assert job.holding is not None
            full = (job.computed + chunk) // self.limits.block_size
            if full > job.holding.hashed:
                cache.store(job.holding, full, (self._cached_step, job.admission))

    @property
    def _cached_step(self) -> int:
        """The count with which jobs have cached what they decode in this step.

        A token in flight is not known, and so its block is not cached.
        """
        return self.num_steps + (not self._async)

    def _admit(self, chunks: list[tuple[Job, int]], budget: int) -> None:
        limits = self.limits
        block_size = limits.block_size
        while self.waiting and budget > 0 and len(self.running) < limits.max_num_seqs:
            job = self.waiting[0]
            found = _NOTHING
            if self._cache is not None:
                found = self._find(job, self._cached_step)
            computed = found.blocks * block_size
            chunk = min(job.known - computed, budget)
            whole = job.known if limits.scheduler_reserve_full_isl else computed + chunk
            spare_blocks = self._watermark_blocks if self.running else 0
            needed = -(-whole // block_size) - found.held
            if needed + spare_blocks > self.free_blocks:
                break
            self.waiting.popleft()
            self.running[job] = None
            self._admissions += 1
            job.admission = self._admissions
            if self._cache is not None:
                assert job.holding is not None
                job.holding.admission = job.admission
                if found.blocks:
                    self._cache.hold(job.holding, found)
                    self.free_blocks -= found.blocks - found.held
            if job.first_step_s != job.first_step_s:
                job.first_step_s = max(self.now_s, self._end_s)
                job.cached_tokens = computed
            job.computed = computed
            blocks = -(-(computed + chunk) // block_size) - found.blocks
            self._take_chunk(job, chunk, blocks)
            chunks.append((job, chunk))
            budget -= chunk

    def _complete_chunk(self, job: Job, chunk: int) -> None:
        """A chunk ran: sample if it was the last, and decode from now on."""
        job.computed += chunk
        if job.computed < job.known:
            self._partial = job
            return
        job.known += 1
        if job.first_token_s != job.first_token_s:
            job.first_token_s = self._end_s
        left = job.prompt_tokens + job.output_tokens - job.known
        if self._async and job.is_open_ended and job.tokens < self.limits.max_model_len:
            left += 1
        job.offset = job.computed - self.num_steps
        self._offsets += job.offset
        self._phases[job.offset % self.limits.block_size] += 1
        if self._cache is not None and left:
            assert job.holding is not None
            self._cache.grow(job.holding, job.offset)
        heappush(self._finishes, (self.num_steps + left, job.admission, job))

    def _end_finished(self, chunks: Iterable[tuple[Job, int]] = ()) -> None:
        """Take the output: of the steps that ran or, a step ahead, of those before."""
        ended = self._take_ending() if self._ending or self._evicted_at_end else []
        for job, chunk in chunks:
            self._complete_chunk(job, chunk)
        finishes = self._finishes
        while finishes and finishes[0][0] <= self.num_steps:
            _, admission, job = heappop(finishes)
            if job.admission == admission:
                self._stop_decoding(job)
                if self._async and job.computed < job.prompt_tokens + job.output_tokens:
                    job.finish_s = self._end_s
                    self._ending[job] = None
                else:
                    job.finish_s = self.now_s
                    ended.append(job)
        if len(ended) > 1:
            ended.sort(key=lambda job: job.admission)
        for job in ended:
            self._end(job, self.num_steps - 1)

    def _take_ending(self) -> list[Job]:
        ended = [*self._ending, *self._evicted_at_end]
        self._ending.clear()
        for job in self._evicted_at_end:
            if job.finish_s != job.finish_s:
                job.finish_s = self.now_s
        self._evicted_at_end.clear()
        return ended

    def _end(self, job: Job, step: int) -> None:
        """Let a job go whose last token this step has taken."""
        self.finished.append(job)
        # Otherwise it was evicted since.
        if job.admission:
            if self._cache is not None and self._async:
                assert job.holding is not None
                # The last token is never computed, or never cached.
                full = (job.tokens - 1) // self.limits.block_size
                if full > job.holding.hashed:
                    order = (step, _LATE + job.admission)
                    self._cache.store(job.holding, full, order)
            self._free(job, job.computed)
            del self.running[job]

    def _stop_decoding(self, job: Job) -> None:
        job.computed = self.num_steps + job.offset
        self._offsets -= job.offset
        self._phases[job.offset % self.limits.block_size] -= 1
        if self._cache is not None:
            assert job.holding is not None
            cached = job.computed - self._async
            self._cache.stop(job.holding, cached // self.limits.block_size)

    def _evict(self, job: Job) -> None:
        """Preempt: forget what is computed, and wait at the head of the queue."""
        if job is self._partial:
            self._partial = None
        elif job in self._ending:
            del self._ending[job]
            job.known = job.tokens
        else:
            self._stop_decoding(job)
            job.known = job.computed + 1
        self._free(job, job.computed)
        job.computed = 0
        job.admission = 0
        job.num_preemptions += 1
        self.num_preemptions += 1
        del self.running[job]
        if job.known < job.tokens:
            self.waiting.appendleft(job)
        else:
            self._evicted_at_end.append(job)

    def _evict_for_decoding(self, chunks: list[tuple[Job, int]]) -> bool:
        """Give blocks in order of admission, taking from the tail what is missing."""
        order = list(self.running)
        block_size = self.limits.block_size
        budget = self.limits.max_num_batched_tokens
        served = 0
        while served < len(order):
            job = order[served]
            served += 1
            if job in self._ending:
                continue
            chunk = 1
            if job is self._partial:
                chunk = min(job.known - job.computed, budget)
                needed = self._blocks_for_chunk(job, chunk)
            else:
                needed = int((self.num_steps + job.offset) % block_size == 0)
            while needed > self.free_blocks:
                victim = order.pop()
                self._evict(victim)
                if victim is job:
                    return True
            budget -= chunk
            if job is self._partial:
                self._take_chunk(job, chunk, needed)
                chunks.append((job, chunk))
            else:
                self._take_blocks(needed)
        return True


def _steps_until(span_s: float, first_s: float, growth_s: float, most: int) -> int:
    """Smallest number of steps that lasts at least ``span_s``, from 1 to ``most``.

    Steps last ``first_s``, ``first_s + growth_s``, ...
    """
    if growth_s > 0:
        slope = first_s - growth_s / 2
        root = math.sqrt(slope * slope + 2 * growth_s * span_s)
        estimate = 2 * span_s / (slope + root)
    else:
        estimate = span_s / first_s
    return max(1, min(most, math.ceil(estimate - 1e-9)))
