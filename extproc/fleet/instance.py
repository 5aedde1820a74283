"""One vLLM instance in simulated time, which runs many steps at once.

The instance makes exactly the decisions of :class:`extproc.fleet.scheduler.Scheduler`
(tests compare these two classes with each other and with recordings of vLLM), but it
does not visit every request at every step. This works because, without
``long_prefill_token_threshold``, only the running request admitted last can have a part
of its prompt left, and every other running request computes exactly one token per step.
So two numbers describe a decoding request: the step count at which it will end, and the
difference between its number of computed tokens and the step count. A histogram of
positions within a block gives the demand for KV blocks, and a sum gives the context. A
series of steps without admission, eviction or end of a request is then a single
calculation with a duration in closed form (:class:`extproc.fleet.steptime.StepTime` is
linear in context).

With asynchronous scheduling, a step is scheduled when the previous one starts, and the
output of the previous one is processed after the next is scheduled. So an arriving
request joins the step after the next, and a request that ends stays for one more step.
In this step it computes one more token if it ends by an end-of-sequence token, and none
otherwise.
"""

from collections import deque
from collections.abc import Sequence

from extproc.fleet.decoders import Decoders
from extproc.fleet.job import Job
from extproc.fleet.kv_blocks import NOTHING, KvBlocks
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime, steps_until


class Instance:
    """The queues, KV blocks and clock of one instance.

    While there are requests, ``now_s`` is the time at which the next step is scheduled:
    the end of the last step or, with asynchronous scheduling, the start of the last
    step. Finished jobs collect in ``finished`` until the caller removes them.

    Raises:
        ValueError: the limits have a ``long_prefill_token_threshold`` or no chunked
            prefill.
    """

    def __init__(self, limits: SchedulerLimits, step_time: StepTime) -> None:
        if limits.long_prefill_token_threshold or not limits.enable_chunked_prefill:
            raise ValueError(
                "long_prefill_token_threshold, enable_chunked_prefill: not simulated; "
                "expected 0 and True, or the use of extproc.fleet.scheduler"
            )
        self.now_s = 0.0
        self.running: dict[Job, None] = {}  # in order of admission
        self.waiting: deque[Job] = deque()
        self.finished: list[Job] = []
        self.num_preemptions = 0
        self.busy_s = 0.0
        self.running_s = 0.0  # number of running requests, integrated over time
        self.blocks_s = 0.0  # number of used KV blocks, integrated over time
        self.computed_tokens = 0
        self._kv = KvBlocks(limits)
        self._end_s = 0.0  # end of the last step scheduled
        self._partial: Job | None = None
        # Jobs whose last token is computed but unknown. These jobs keep their slot and
        # their blocks.
        self._ending: dict[Job, None] = {}
        self._evicted_at_end: list[Job] = []
        self._decoders = Decoders(limits.block_size)
        self._admissions = 0
        # Stored as attributes, since every step reads these values.
        self._watermark_blocks = int(limits.watermark * limits.num_blocks)
        self._usable_blocks = limits.usable_blocks
        self._block_size = limits.block_size
        self._max_model_len = limits.max_model_len
        self._max_num_seqs = limits.max_num_seqs
        self._max_num_batched_tokens = limits.max_num_batched_tokens
        self._reserves_whole = limits.scheduler_reserve_full_isl
        self._async = limits.async_scheduling
        # A token in flight is unknown, so its block is not cached yet.
        self._lag = 0 if limits.async_scheduling else 1
        self._fixed_s = step_time.fixed_s
        self._context_s = step_time.context_s
        self._pair_s = step_time.pair_s

    def __len__(self) -> int:
        """Return the number of running and waiting requests."""
        return len(self.running) + len(self.waiting)

    @property
    def free_blocks(self) -> int:
        """Number of unused KV blocks."""
        return self._kv.free

    @property
    def kv_cache_usage(self) -> float:
        """Share of the usable KV blocks in use, 0 to 1."""
        return 1.0 - self._kv.free / self._usable_blocks

    def add(self, job: Job) -> None:
        """Queue a job that arrives after every previous step has started.

        Raises:
            ValueError: the job exceeds ``max_model_len``.
        """
        if job.prompt_tokens + job.output_tokens > self._max_model_len:
            raise ValueError(
                f"{job.prompt_tokens} + {job.output_tokens} tokens; expected at most "
                f"max_model_len ({self._max_model_len})"
            )
        if not self.running and not self.waiting and job.arrival_s > self.now_s:
            self.now_s = job.arrival_s
        job.known = job.prompt_tokens
        self._kv.enter(job)
        self.waiting.append(job)

    def advance(self, until_s: float) -> None:
        """Run every step that is scheduled before ``until_s``."""
        while self.now_s < until_s and (self.running or self.waiting):
            if self._partial is None and (
                not self.waiting or self._is_head_held_back()
            ):
                self._decode(until_s)
            elif self._partial is None or not self._prefill(until_s):
                self.step()

    def _is_head_held_back(self) -> bool:
        """Return whether no request can be admitted until a running request ends."""
        if self._ending or not self.running:
            return False
        if len(self.running) >= self._max_num_seqs:
            return True
        job = self.waiting[0]
        found = self._kv.find(job, self._decoders.steps + self._lag - 1)
        if not found.is_final:
            return False
        tokens = job.known
        if not self._reserves_whole:
            budget = self._max_num_batched_tokens - len(self.running)
            computed = max(found.blocks * self._block_size, job.reported)
            tokens = min(tokens, computed + budget)
        needed = -(-tokens // self._block_size) - found.held + self._watermark_blocks
        return needed > self._kv.free

    def _decode(self, until_s: float) -> None:
        """Run decode-only steps until a job ends or is evicted, or to ``until_s``."""
        kv = self._kv
        decoders = self._decoders
        if self._ending and not self._end_before_next():
            self.step()
            return
        seqs = len(self.running)
        steps = decoders.steps_to_end()
        if kv.free < seqs * (steps // self._block_size + 1):
            steps = min(steps, decoders.steps_within(kv.free, seqs))
            if steps == 0:
                self.step()
                return
        context = seqs * decoders.steps + decoders.offsets
        first_s = self._fixed_s(0, seqs) + self._context_s * context
        growth_s = self._context_s * seqs
        steps, duration_s = self._steps_before(until_s, steps, first_s, growth_s)
        kv.take(decoders.blocks(steps, seqs))
        self.computed_tokens += seqs * steps
        self._elapse(duration_s, steps, seqs, first_s + growth_s * (steps - 1))
        self._end_finished()

    def _prefill(self, until_s: float) -> bool:
        """Run steps whose whole budget goes to the partial prompt, if there are some.

        These steps admit no request. The prompt's last chunk is left to :meth:`step`.

        Returns:
            Whether steps were run.
        """
        job = self._partial
        assert job is not None
        seqs = len(self.running) - 1
        chunk = self._max_num_batched_tokens - seqs
        computed = job.computed
        if job.known - computed <= 2 * chunk or chunk < 1:
            return False
        if self._ending or self._evicted_at_end or job.holding is not None:
            return False
        kv = self._kv
        decoders = self._decoders
        steps = (job.known - computed - 1) // chunk
        if seqs:
            steps = min(steps, decoders.steps_to_end())
        growth_s = self._context_s * seqs + self._pair_s * chunk * chunk
        first_s = (
            self._fixed_s(chunk, seqs)
            + self._context_s * (seqs * decoders.steps + decoders.offsets)
            + self._pair_s * chunk * (computed + (chunk + 1) / 2)
        )
        steps, duration_s = self._steps_before(until_s, steps, first_s, growth_s)
        filled = self._blocks_between(computed, computed + steps * chunk)
        needed = filled + (decoders.blocks(steps, seqs) if seqs else 0)
        if needed > kv.free:
            return False
        kv.take(needed)
        job.computed = computed + steps * chunk
        self.computed_tokens += steps * (chunk + seqs)
        self._elapse(duration_s, steps, seqs + 1, first_s + growth_s * (steps - 1))
        # Each step fills its own share of the blocks.
        self.blocks_s -= filled * (steps - 1) / (2 * steps) * duration_s
        self._end_finished()
        return True

    def _steps_before(
        self, until_s: float, steps: int, first_s: float, growth_s: float
    ) -> tuple[int, float]:
        """Return how many of the next steps are scheduled before a time, and how long.

        The steps last ``first_s``, ``first_s + growth_s``, ...
        """
        duration_s = steps * first_s + growth_s * steps * (steps - 1) / 2
        # The second step is scheduled when the first ends or, with asynchronous
        # scheduling, when the first starts.
        ahead = 1 if self._async else 0
        span_s = until_s - (self._end_s if ahead else self.now_s)
        if steps > ahead and duration_s > span_s:
            most = steps - ahead
            steps = ahead
            if span_s > 0:
                steps += min(most, steps_until(span_s, first_s, growth_s))
            duration_s = steps * first_s + growth_s * steps * (steps - 1) / 2
        return steps, duration_s

    def _end_before_next(self) -> bool:
        """Remove requests whose last token is computed, if the next step only decodes.

        These requests keep their blocks while the next step is scheduled.
        """
        kv = self._kv
        demand = self._decoders.demand()
        if len(self.running) == len(self._ending) or demand > kv.free:
            return False
        kv.take(demand)
        for job in self._ending:
            self._end(job, self._decoders.steps)
        self._ending.clear()
        kv.free += demand
        return True

    def step(self) -> None:
        """Schedule and run one step of any kind."""
        kv = self._kv
        decoders = self._decoders
        seqs = len(self.running) - len(self._ending) - (self._partial is not None)
        demand = decoders.demand()
        chunks: list[tuple[Job, int]] = []
        if demand > kv.free:
            self._evict_for_decoding(chunks)
            seqs = len(self.running) - len(self._ending) - (self._partial is not None)
        else:
            if demand:
                kv.take(demand)
            budget = self._max_num_batched_tokens - seqs
            if self._partial is not None:
                budget = self._continue_partial(chunks, budget)
            if self.waiting and budget > 0:
                self._admit(chunks, budget)
        tokens = 0
        pairs = 0.0
        for job, chunk in chunks:
            tokens += chunk
            pairs += chunk * (job.computed + (chunk + 1) / 2)
        if tokens + seqs:
            context = seqs * decoders.steps + decoders.offsets
            duration_s = (
                self._fixed_s(tokens, seqs)
                + self._context_s * context
                + self._pair_s * pairs
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
        """Advance the clock by some steps; the last step takes ``last_s``."""
        if self._async:
            started_s = self._end_s if self._end_s > self.now_s else self.now_s
            end_s = self._end_s = started_s + duration_s
            self.now_s = started_s if steps == 1 else end_s - last_s
        else:
            self.now_s = self._end_s = self.now_s + duration_s
        self._decoders.steps += steps
        self.busy_s += duration_s
        self.running_s += seqs * duration_s
        self.blocks_s += (self._usable_blocks - self._kv.free) * duration_s

    def _continue_partial(self, chunks: list[tuple[Job, int]], budget: int) -> int:
        """Continue the prompt admitted last; evict its request if no blocks are free.

        Returns:
            The number of tokens left in the step; 0 after an eviction.
        """
        job = self._partial
        assert job is not None
        computed = job.computed
        chunk = job.known - computed
        if chunk > budget:
            chunk = budget
        needed = self._blocks_between(computed, computed + chunk)
        if needed > self._kv.free:
            self._evict(job)
            return 0
        self._take_chunk(job, computed + chunk, needed)
        chunks.append((job, chunk))
        return budget - chunk

    def _blocks_between(self, computed: int, until: int) -> int:
        """Return the number of blocks for tokens ``computed`` to ``until`` - 1."""
        block_size = self._block_size
        return -(-until // block_size) - -(-computed // block_size)

    def _take_chunk(self, job: Job, until: int, blocks: int) -> None:
        """Allocate blocks for a chunk, and cache its full blocks at once."""
        kv = self._kv
        if kv.is_caching:
            kv.take(blocks)
            if job.holding is not None:
                full = until // self._block_size
                kv.store(job, full, self._decoders.steps + self._lag)
        else:
            kv.free -= blocks

    def _admit(self, chunks: list[tuple[Job, int]], budget: int) -> None:
        kv = self._kv
        block_size = self._block_size
        running = self.running
        waiting = self.waiting
        starts_s = self._end_s if self._end_s > self.now_s else self.now_s
        while waiting and budget > 0 and len(running) < self._max_num_seqs:
            job = waiting[0]
            found = NOTHING
            if job.holding is not None:
                found = kv.find(job, self._decoders.steps + self._lag)
            computed = max(found.blocks * block_size, job.reported)
            chunk = job.known - computed
            if chunk > budget:
                chunk = budget
            whole = job.known if self._reserves_whole else computed + chunk
            needed = -(-whole // block_size) - found.held
            if running:
                needed += self._watermark_blocks
            if needed > kv.free:
                break
            waiting.popleft()
            running[job] = None
            self._admissions += 1
            job.admission = self._admissions
            if job.holding is not None:
                kv.hold(job, found)
            if job.first_step_s != job.first_step_s:
                job.first_step_s = starts_s
                job.cached_tokens = computed
            job.computed = computed
            blocks = -(-(computed + chunk) // block_size) - found.blocks
            self._take_chunk(job, computed + chunk, blocks)
            chunks.append((job, chunk))
            budget -= chunk

    def _complete_chunk(self, job: Job, chunk: int) -> None:
        """Finish a chunk. After the last chunk, sample a token and start decoding."""
        computed = job.computed = job.computed + chunk
        if computed < job.known:
            self._partial = job
            return
        job.known += 1
        if job.first_token_s != job.first_token_s:
            job.first_token_s = self._end_s
        left = job.prompt_tokens + job.output_tokens - job.known
        if self._async and job.is_open_ended and job.tokens < self._max_model_len:
            left += 1
        self._decoders.join(job, left)
        if left and job.holding is not None:
            self._kv.grow(job)

    def _end_finished(self, chunks: Sequence[tuple[Job, int]] = ()) -> None:
        """Process the output of the steps whose tokens are known now."""
        decoders = self._decoders
        taken = None
        if self._ending or self._evicted_at_end:
            taken = self._take_ending()
        for job, chunk in chunks:
            self._complete_chunk(job, chunk)
        ends = decoders.ends
        ended = decoders.ended() if ends and ends[0][0] <= decoders.steps else ()
        for job in ended:
            self._stop_decoding(job)
            if self._async and job.computed < job.prompt_tokens + job.output_tokens:
                job.finish_s = self._end_s
                self._ending[job] = None
                continue
            job.finish_s = self.now_s
            if taken is None:
                self._end(job, decoders.steps - 1)
            else:
                taken.append(job)
        if taken:
            taken.sort(key=lambda job: job.admission)
            for job in taken:
                self._end(job, decoders.steps - 1)

    def _take_ending(self) -> list[Job]:
        ended = [*self._ending, *self._evicted_at_end]
        self._ending.clear()
        for job in self._evicted_at_end:
            if job.finish_s != job.finish_s:
                job.finish_s = self.now_s
        self._evicted_at_end.clear()
        return ended

    def _end(self, job: Job, step: int) -> None:
        """Remove a job whose last token was processed in this step."""
        self.finished.append(job)
        # A job without an admission number was evicted in the meantime.
        if job.admission:
            self._kv.end(job, step)
            del self.running[job]

    def _stop_decoding(self, job: Job) -> None:
        self._decoders.leave(job)
        if job.holding is not None:
            self._kv.stop(job)

    def _evict(self, job: Job) -> None:
        """Preempt a job: drop its computed tokens and queue it first."""
        if job is self._partial:
            self._partial = None
        elif job in self._ending:
            del self._ending[job]
        else:
            self._stop_decoding(job)
        self._kv.preempt(job)
        if job.computed >= job.known:
            job.known = min(job.computed + 1, job.tokens)
        job.computed = 0
        job.admission = 0
        job.num_preemptions += 1
        self.num_preemptions += 1
        del self.running[job]
        if job.known < job.tokens:
            self.waiting.appendleft(job)
        else:
            self._evicted_at_end.append(job)

    def _evict_for_decoding(self, chunks: list[tuple[Job, int]]) -> None:
        """Allocate blocks in order of admission, preempting the last jobs if needed."""
        kv = self._kv
        order = list(self.running)
        budget = self._max_num_batched_tokens
        served = 0
        while served < len(order):
            job = order[served]
            served += 1
            if job in self._ending:
                continue
            chunk = 1
            if job is self._partial:
                chunk = min(job.known - job.computed, budget)
                needed = self._blocks_between(job.computed, job.computed + chunk)
            else:
                computed = self._decoders.steps + job.offset
                needed = int(computed % self._block_size == 0)
            while needed > kv.free:
                victim = order.pop()
                self._evict(victim)
                if victim is job:
                    return
            budget -= chunk
            if job is self._partial:
                self._take_chunk(job, job.computed + chunk, needed)
                chunks.append((job, chunk))
            else:
                kv.take(needed)
