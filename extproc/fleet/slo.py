"""What users are promised, and whether one request got it."""

from dataclasses import dataclass

import numpy as np

from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime
from extproc.fleet.workload import Tokens

#: Share of requests that a promise "at P99" covers.
COVERED = 0.99


@dataclass(frozen=True, slots=True)
class Slo:
    """Promises at the 99th percentile; the papers' by default."""

    p99_ttft_s: float = 2.0
    """Seconds to the first token (> 0)."""
    p99_tpot_s: float = 0.08
    """Seconds for each further token (> 0)."""
    preemption_rate: float = 0.01
    """Preemptions a request, at most (>= 0)."""
    long_tokens: int = 1 << 40
    """Requests of more tokens, prompt and output, are long ones."""
    long_ttft_s: float = 2.0
    """Their promise in place of ``p99_ttft_s``: reading 60,000 tokens takes ten seconds
    whatever the fleet, and no number of instances changes it. See
    :func:`long_promise_s`."""

    def __post_init__(self) -> None:
        for name in ("p99_ttft_s", "p99_tpot_s", "long_ttft_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)}, expected > 0")
        if self.preemption_rate < 0:
            raise ValueError(f"preemption_rate: {self.preemption_rate}, expected >= 0")


def idle_ttft_s(
    prompt_tokens: int, limits: SchedulerLimits, step_time: StepTime
) -> float:
    """Seconds to the first token on an instance that has nothing else to do."""
    budget = limits.max_num_batched_tokens
    chunks, rest = divmod(prompt_tokens, budget)
    seconds = chunks * step_time.fixed_s(budget, 0)
    if rest:
        seconds += step_time.fixed_s(rest, 0)
    return seconds + step_time.pair_s * prompt_tokens * (prompt_tokens + 1) / 2


def long_promise_s(
    prompts: Tokens, limits: SchedulerLimits, step_time: StepTime, p99_ttft_s: float
) -> float:
    """A ``long_ttft_s`` that can be kept: twice the idle P99 of the long prompts.

    Never less than ``p99_ttft_s``, which is the answer where there are none.
    """
    if not len(prompts):
        return p99_ttft_s
    longest = int(np.quantile(prompts, COVERED))
    return max(p99_ttft_s, 2 * idle_ttft_s(longest, limits, step_time))


def token_budget(step_time: StepTime, slo: Slo, least: int = 256) -> int:
    """``max_num_batched_tokens`` that keeps a full step within the TPOT promise.

    The largest power of two, from ``least`` to 8,192, whose step takes at most 0.9 of
    it: a chunk of someone else's prompt is what a decoding request waits for.
    """
    budget = least
    while budget < 8192 and step_time.fixed_s(2 * budget, 0) <= 0.9 * slo.p99_tpot_s:
        budget *= 2
    return budget
