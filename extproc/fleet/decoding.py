"""An instance that only decodes, with prompts computed on other instances.

In a prefill-decode pair, vLLM's decode instance admits a request once there is room for
the KV cache of its whole prompt. It pulls that cache, recomputes the last prompt token
to get its logits, and decodes (vllm/distributed/kv_transfer, NIXL connector). So an
answer of n tokens takes n steps, and the first step produces the client's first token.

This module reserves blocks for the answer together with those for the prompt, so no
request is preempted. vLLM allocates blocks for the answer as it grows, so a pool that
is limited by KV cache is sized slightly larger than vLLM needs.
"""

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime, steps_until


@dataclass(slots=True, eq=False)
class Decode:
    """One request in a decode instance.

    Attributes:
        ready_s: time of arrival, before the transfer.
        prompt_tokens, output_tokens: numbers of tokens, at least 1 each.
        transfer_s: duration of the request's KV-cache transfer, which starts at
            admission.
        first_token_s, finish_s: ends of the steps of its first and last token.
    """

    ready_s: float
    prompt_tokens: int
    output_tokens: int
    transfer_s: float = 0.0
    first_token_s: float = math.nan
    finish_s: float = math.nan


class DecodeInstance:
    """Continuous batching of decoding requests, many steps at once.

    ``now_s`` is the end of the last step; ``finished`` collects completed requests.
    """

    def __init__(self, limits: SchedulerLimits, step_time: StepTime) -> None:
        self.limits = limits
        self.now_s = 0.0
        self.finished: list[Decode] = []
        self.busy_s = 0.0
        self.running_s = 0.0  # number of decoding requests, integrated over time
        self._step_time = step_time
        self._free_blocks = limits.usable_blocks
        self._waiting: deque[Decode] = deque()
        # Admitted requests with a KV-cache transfer in progress: (arrival time of the
        # last byte, order, request).
        self._pulling: list[tuple[float, int, Decode]] = []
        self._decoding: list[tuple[int, int, Decode]] = []  # (last step, order, job)
        self._fresh: list[Decode] = []  # requests still without a token
        self._steps = 0
        self._context = 0
        self._order = 0

    def __len__(self) -> int:
        """Return the number of requests in the instance, including waiting ones."""
        return len(self._waiting) + len(self._pulling) + len(self._decoding)

    def add(self, request: Decode) -> None:
        """Queue a request at its ``ready_s``; calls must be in order of that time.

        Raises:
            ValueError: the request exceeds ``max_model_len`` or the KV cache.
        """
        tokens = request.prompt_tokens + request.output_tokens
        fits = self.limits.blocks_for(tokens) <= self.limits.usable_blocks
        if tokens > self.limits.max_model_len or not fits:
            raise ValueError(
                f"{request.prompt_tokens} + {request.output_tokens} tokens; expected "
                f"at most max_model_len ({self.limits.max_model_len}) and the KV cache"
            )
        self.advance(request.ready_s)
        if not self._decoding:
            self.now_s = max(self.now_s, request.ready_s)
        self._waiting.append(request)
        self._admit(request.ready_s)

    def advance(self, until_s: float) -> None:
        """Run every step that starts before ``until_s``."""
        while self.now_s < until_s:
            self._join()
            if not self._decoding:
                if not self._pulling:
                    return
                self.now_s = max(self.now_s, min(self._pulling[0][0], until_s))
                if self._pulling[0][0] >= until_s:
                    return
                continue
            self._run(min(until_s, self._pulling[0][0] if self._pulling else until_s))

    def _admit(self, now_s: float) -> None:
        """Reserve blocks for requests at the head of the queue; start transfers."""
        while self._waiting:
            held = len(self._pulling) + len(self._decoding)
            request = self._waiting[0]
            blocks = self._blocks(request)
            if held >= self.limits.max_num_seqs or blocks > self._free_blocks:
                return
            self._waiting.popleft()
            self._free_blocks -= blocks
            self._order += 1
            arrival_s = max(now_s, request.ready_s) + request.transfer_s
            heappush(self._pulling, (arrival_s, self._order, request))

    def _blocks(self, request: Decode) -> int:
        return self.limits.blocks_for(request.prompt_tokens + request.output_tokens)

    def _join(self) -> None:
        """Start decoding requests whose KV cache has arrived."""
        while self._pulling and self._pulling[0][0] <= self.now_s:
            _, order, request = heappop(self._pulling)
            heappush(
                self._decoding, (self._steps + request.output_tokens, order, request)
            )
            self._context += request.prompt_tokens - 1
            self._fresh.append(request)

    def _run(self, until_s: float) -> None:
        """Run steps until the first request ends or a step starts at ``until_s``."""
        seqs = len(self._decoding)
        step_time = self._step_time
        growth_s = step_time.context_s * seqs
        first_s = step_time.fixed_s(0, seqs) + step_time.context_s * self._context
        steps = 1
        if not self._fresh:
            steps = self._decoding[0][0] - self._steps
            span_s = until_s - self.now_s
            if steps * first_s + growth_s * steps * (steps - 1) / 2 > span_s:
                steps = min(steps, steps_until(span_s, first_s, growth_s))
        duration_s = steps * first_s + growth_s * steps * (steps - 1) / 2
        self.now_s += duration_s
        self.busy_s += duration_s
        self.running_s += duration_s * seqs
        self._steps += steps
        self._context += steps * seqs
        for request in self._fresh:
            request.first_token_s = self.now_s
        self._fresh.clear()
        self._end()

    def _end(self) -> None:
        ended = False
        while self._decoding and self._decoding[0][0] <= self._steps:
            _, _, request = heappop(self._decoding)
            request.finish_s = self.now_s
            self._context -= request.prompt_tokens - 1 + request.output_tokens
            self._free_blocks += self._blocks(request)
            self.finished.append(request)
            ended = True
        if ended:
            self._admit(self.now_s)
