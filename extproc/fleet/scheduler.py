"""vLLM's v1 scheduler, one step at a time.

A request has computed tokens and known tokens (prompt plus output so far). A step
assigns up to ``max_num_batched_tokens`` tokens to requests, so that the number of
computed tokens catches up with the number of known tokens. There is no prefill phase
and no decode phase. Running requests come first, in order of admission; each allocates
the KV blocks for its new tokens. If no blocks are left, the request admitted last is
preempted, which frees its blocks, drops its computed tokens and moves it to the head of
the waiting queue. Then, if no request was preempted, waiting requests are admitted in
order of arrival until the head of the queue does not fit.

With prefix caching, a request that is admitted, for the first time or after a
preemption, reuses the cached blocks of its longest prefix of full blocks, which
excludes its last token. When vLLM checks whether enough blocks are free, a cached block
that no request is using counts as needed, like a new one. The full blocks of the
request's prompt enter the cache at allocation, before they are computed; the blocks of
its answer enter the cache when they are full.

With asynchronous scheduling, a step is scheduled before the tokens of the previous one
are known. Each token in flight counts as known, but its block does not enter the cache,
and a request that ends keeps its slot and its blocks while one more step is scheduled.
This step computes one more token for the request if it ends by an end-of-sequence
token, which cannot be foreseen, and no token if the request reaches ``max_tokens``.

Source: ``vllm/v1/core/sched/scheduler.py`` (``schedule``, ``update_from_output``),
``vllm/v1/core/sched/async_scheduler.py``, ``vllm/v1/core/kv_cache_manager.py``
(``get_computed_blocks``, ``allocate_slots``), ``vllm/v1/core/sched/utils.py``
(``check_stop``) and ``vllm/v1/engine/core.py`` (``step_with_batch_queue``) of vLLM
0.32.0, for a dense full-attention model without speculative decoding or pipeline
parallelism. ``tests/fleet`` replays recordings of that code.

The scheduler is not thread-safe and reads no clock. The caller determines the duration
of a step (see :mod:`extproc.fleet.hardware`).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from extproc.fleet.block_pool import Block, BlockPool
from extproc.fleet.scheduled import Request, Status, Step


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The limits of a vLLM instance, with vLLM's names.

    Raises:
        ValueError: a limit is out of range; the message has its name and value.
    """

    max_num_seqs: int
    """Maximum number of running requests (> 0)."""
    max_num_batched_tokens: int
    """Maximum number of tokens in one step (>= ``max_num_seqs``)."""
    max_model_len: int
    """Maximum number of prompt plus output tokens of one request (> 1)."""
    num_blocks: int
    """Number of KV-cache blocks of the instance (> 1), including the null block, which
    is not usable."""
    block_size: int = 16
    """Number of tokens in one block (> 0)."""
    long_prefill_token_threshold: int = 0
    """Maximum number of tokens for one request in a step shared with other requests; 0
    for no limit."""
    watermark: float = 0.0
    """Share of ``num_blocks`` kept free at an admission while other requests run, in
    [0, 1)."""
    scheduler_reserve_full_isl: bool = True
    """Whether admission requires free blocks for all known tokens of the request
    instead of only for its first chunk."""
    enable_chunked_prefill: bool = True
    """Whether a prompt may be divided over several steps."""
    enable_prefix_caching: bool = True
    """Whether KV blocks are kept for later requests with the same prefix."""
    async_scheduling: bool = True
    """Whether a step is scheduled while the previous one runs."""

    def __post_init__(self) -> None:
        accepted = {
            "max_num_seqs": 1,
            "max_model_len": 2,
            "num_blocks": 2,
            "block_size": 1,
            "long_prefill_token_threshold": 0,
            # vLLM rejects a step with fewer tokens than sequences.
            "max_num_batched_tokens": self.max_num_seqs,
        }
        for name, least in accepted.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: {getattr(self, name)}; expected an integer >= {least}"
                )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark: {self.watermark}; expected 0 <= x < 1")
        if (
            not self.enable_chunked_prefill
            and self.max_num_batched_tokens < self.max_model_len
        ):
            raise ValueError(
                f"max_num_batched_tokens: {self.max_num_batched_tokens}; expected >= "
                f"max_model_len ({self.max_model_len}) without chunked prefill"
            )

    @property
    def usable_blocks(self) -> int:
        """Number of KV blocks for requests, which excludes vLLM's null block."""
        return self.num_blocks - 1

    @property
    def usable_tokens(self) -> int:
        """Number of tokens whose keys and values fit in the usable blocks."""
        return self.usable_blocks * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Return the number of KV blocks for ``tokens`` tokens of one request."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class _Share:
    """A request's part of a step."""

    request: Request
    tokens: int
    samples: bool
    """Whether the step produces an output token for the request."""
    num_preemptions: int
    """Number of preemptions before the step; a later one makes the step's output stale.
    """


class Scheduler:
    """The queues and the KV blocks of one vLLM instance.

    ``add`` and ``abort`` can be called at any time between two calls of ``step``.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.pool = BlockPool(limits.usable_blocks)
        self._requests: dict[str, Request] = {}
        self._in_flight: list[_Share] = []
        self._watermark_blocks = int(limits.watermark * limits.num_blocks)

    @property
    def free_blocks(self) -> int:
        """Number of unused KV blocks, whether or not they are in the prefix cache."""
        return self.pool.num_free

    @property
    def kv_cache_usage(self) -> float:
        """Share of the usable KV blocks in use, 0 to 1."""
        return 1.0 - self.free_blocks / self.limits.usable_blocks

    def get(self, request_id: str) -> Request | None:
        """Return the unfinished request with an id, or None."""
        return self._requests.get(request_id)

    def add(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        *,
        max_tokens: int | None = None,
        block_hashes: Sequence[Hashable] = (),
        reported_tokens: int = 0,
    ) -> Request:
        """Queue a request.

        vLLM's front end answers a prompt of ``max_model_len`` or more tokens with 400,
        and limits ``max_tokens`` to the rest of the window; the scheduler itself ends a
        request at ``max_model_len`` tokens.

        Args:
            max_tokens: the client's limit, larger than ``output_tokens`` if the request
                ends by an end-of-sequence token; None for ``output_tokens``.
            block_hashes: see :class:`extproc.fleet.scheduled.Request`.
            reported_tokens: number of prompt tokens that need not be computed,
                independent of the cache. Only whole blocks before the last token are
                used, and none without prefix caching.

        Raises:
            ValueError: the id is in use, or a count is too low.
        """
        if request_id in self._requests:
            raise ValueError(f"request_id: {request_id!r}; expected a new id")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"request {request_id!r}: {prompt_tokens} prompt and {output_tokens} "
                "output tokens; expected at least 1 of each"
            )
        limit = output_tokens if max_tokens is None else max_tokens
        if limit < output_tokens:
            raise ValueError(
                f"max_tokens: {max_tokens}; expected >= output_tokens ({output_tokens})"
            )
        request = Request(request_id, prompt_tokens, output_tokens, limit, block_hashes)
        if self.limits.enable_prefix_caching:
            size = self.limits.block_size
            request.reported_tokens = (
                min(reported_tokens, prompt_tokens - 1) // size * size
            )
        self._requests[request_id] = request
        self.waiting.append(request)
        return request

    def abort(self, request_id: str) -> bool:
        """Remove a request and free its blocks; return False if it is unknown."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request)
        return True

    def step(self) -> Step:
        """Schedule and run one step, and process its output.

        With asynchronous scheduling, the previous step's output is processed instead.
        If there are no requests, or if the head of the queue can never fit, the step
        has no tokens.
        """
        scheduled: list[tuple[Request, int]] = []
        preempted: list[Request] = []
        cached: dict[str, int] = {}
        budget = self._schedule_running(scheduled, preempted)
        if not preempted:
            self._schedule_waiting(scheduled, cached, budget)
        context_tokens = sum(request.num_computed_tokens for request, _ in scheduled)
        shares = [self._advance(request, tokens) for request, tokens in scheduled]
        done = self._in_flight if self.limits.async_scheduling else shares
        self._in_flight = shares
        sampled, finished = self._complete(done)
        return Step(
            scheduled={request.request_id: n for request, n in scheduled},
            context_tokens=context_tokens,
            preempted=tuple(request.request_id for request in preempted),
            sampled=tuple(sampled),
            finished=tuple(finished),
            cached=cached,
        )

    def _schedule_running(
        self, scheduled: list[tuple[Request, int]], preempted: list[Request]
    ) -> int:
        """Assign tokens to running requests; return the rest of the token budget."""
        budget = self.limits.max_num_batched_tokens
        longest_chunk = self._longest_chunk()
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            index += 1
            if request.is_complete:
                continue
            tokens = min(
                request.num_tokens
                + request.num_output_placeholders
                - request.num_computed_tokens,
                longest_chunk,
                budget,
                # Reserve one position for the token that the step will sample.
                self.limits.max_model_len - 1 - request.num_computed_tokens,
            )
            if tokens > 0:
                if not self._make_room(request, tokens, preempted):
                    break
                scheduled.append((request, tokens))
                budget -= tokens
        return budget

    def _make_room(
        self, request: Request, tokens: int, preempted: list[Request]
    ) -> bool:
        """Allocate blocks for a running request, preempting the last ones if needed.

        Return False if the request itself was preempted.
        """
        while not self._allocate(request, tokens):
            victim = self.running.pop()
            self._free(victim)
            victim.num_computed_tokens = 0
            victim.num_output_placeholders = 0
            victim.num_preemptions += 1
            victim.status = Status.PREEMPTED
            self.waiting.appendleft(victim)
            preempted.append(victim)
            if victim is request:
                return False
        return True

    def _schedule_waiting(
        self,
        scheduled: list[tuple[Request, int]],
        cached: dict[str, int],
        budget: int,
    ) -> None:
        """Admit from the head of the waiting queue while requests fit."""
        longest_chunk = self._longest_chunk()
        while (
            self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs
        ):
            request = self.waiting[0]
            found = self._find(request)
            found_tokens = max(
                len(found) * self.limits.block_size, request.reported_tokens
            )
            tokens = min(request.num_tokens - found_tokens, longest_chunk)
            if tokens > budget and not self.limits.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            if not self._admit(request, found, found_tokens, tokens):
                break
            self.waiting.popleft()
            request.status = Status.RUNNING
            self.running.append(request)
            scheduled.append((request, tokens))
            cached[request.request_id] = found_tokens
            budget -= tokens

    def _longest_chunk(self) -> int:
        """Return the token limit of one request; a lone request has no threshold."""
        threshold = self.limits.long_prefill_token_threshold
        if threshold > 0 and len(self.running) + len(self.waiting) > 1:
            return threshold
        return self.limits.max_num_batched_tokens

    def _find(self, request: Request) -> list[Block]:
        """Return the cached blocks of a waiting request before its last token."""
        if not self.limits.enable_prefix_caching:
            return []
        most = (request.num_tokens - 1) // self.limits.block_size
        return self.pool.find(map(request.block_hash, range(most)))

    def _admit(
        self, request: Request, found: list[Block], found_tokens: int, tokens: int
    ) -> bool:
        """Take found blocks, and new ones for ``tokens`` tokens, if enough are free.

        Tokens that are only reported as cached also need new blocks.
        """
        limits = self.limits
        must_fit = found_tokens + tokens
        if limits.scheduler_reserve_full_isl:
            must_fit = request.num_tokens
        held = sum(block.holders > 0 for block in found)
        needed = limits.blocks_for(min(must_fit, limits.max_model_len)) - held
        spare = self._watermark_blocks if self.running else 0
        if needed + spare > self.free_blocks:
            return False
        self.pool.hold(found)
        request.blocks = found
        request.num_hashed_blocks = len(found)
        request.num_computed_tokens = found_tokens
        return self._allocate(request, tokens)

    def _allocate(self, request: Request, tokens: int) -> bool:
        """Take the blocks for ``tokens`` more tokens, if enough are free."""
        limits = self.limits
        computed = request.num_computed_tokens + tokens
        slots = min(computed, limits.max_model_len)
        count = max(limits.blocks_for(slots) - request.num_blocks, 0)
        if count > self.free_blocks:
            return False
        request.blocks += self.pool.take(count)
        self._cache(request, min(computed, request.num_tokens))
        return True

    def _cache(self, request: Request, tokens: int) -> None:
        """Add the full blocks among the first ``tokens`` tokens to the cache."""
        if not self.limits.enable_prefix_caching:
            return
        full = tokens // self.limits.block_size
        for index in range(request.num_hashed_blocks, full):
            self.pool.cache(request.blocks[index], request.block_hash(index))
        request.num_hashed_blocks = max(request.num_hashed_blocks, full)

    def _free(self, request: Request) -> None:
        self.pool.free(request.blocks)
        request.blocks = []
        request.num_hashed_blocks = 0

    def _finish(self, request: Request) -> None:
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._free(request)
        request.status = Status.FINISHED
        del self._requests[request.request_id]

    def _advance(self, request: Request, tokens: int) -> _Share:
        """Count a step's tokens as computed, and its output tokens as in flight."""
        request.num_computed_tokens += tokens
        samples = (
            request.num_computed_tokens
            >= request.num_tokens + request.num_output_placeholders
        )
        request.num_output_placeholders += samples
        return _Share(request, tokens, samples, request.num_preemptions)

    def _complete(self, shares: list[_Share]) -> tuple[list[str], list[str]]:
        """Process the output of a step, and end completed requests."""
        sampled: list[str] = []
        finished: list[str] = []
        for share in shares:
            request = share.request
            if request.status is Status.FINISHED or not share.samples:
                continue
            request.num_output_tokens += 1
            sampled.append(request.request_id)
            if share.num_preemptions == request.num_preemptions:
                request.num_output_placeholders -= 1
                self._cache(
                    request,
                    request.num_computed_tokens - request.num_output_placeholders,
                )
            if (
                request.num_output_tokens >= request.output_tokens
                or request.num_tokens >= self.limits.max_model_len
            ):
                finished.append(request.request_id)
                self._finish(request)
        return sampled, finished
