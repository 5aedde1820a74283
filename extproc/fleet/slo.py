"""The service-level objective of a plan, and its test for one request."""

from dataclasses import dataclass

import numpy as np

from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime
from extproc.fleet.workload import Tokens

#: Share of requests that must keep a limit "at P99".
COVERED = 0.99


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits at the 99th percentile, by default those of the papers."""

    p99_ttft_s: float = 2.0
    """Maximum seconds to the first token (> 0)."""
    p99_tpot_s: float = 0.08
    """Maximum seconds per further token (> 0)."""
    preemption_rate: float = 0.01
    """Maximum ratio of preemptions to requests (>= 0)."""
    long_tokens: int = 1 << 40
    """Number of prompt and output tokens above which a request counts as long."""
    long_ttft_s: float = 2.0
    """TTFT limit of long requests in place of ``p99_ttft_s``, since reading 60,000
    tokens takes ten seconds with any number of instances (see :func:`long_promise_s`).
    """

    def __post_init__(self) -> None:
        for name in ("p99_ttft_s", "p99_tpot_s", "long_ttft_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected > 0")
        if self.preemption_rate < 0:
            raise ValueError(f"preemption_rate: {self.preemption_rate}; expected >= 0")


def idle_ttft_s(
    prompt_tokens: int, limits: SchedulerLimits, step_time: StepTime
) -> float:
    """Return the seconds to the first token on an otherwise idle instance."""
    budget = limits.max_num_batched_tokens
    chunks, rest = divmod(prompt_tokens, budget)
    seconds = chunks * step_time.fixed_s(budget, 0)
    if rest:
        seconds += step_time.fixed_s(rest, 0)
    return seconds + step_time.pair_s * prompt_tokens * (prompt_tokens + 1) / 2


def long_promise_s(
    prompts: Tokens, limits: SchedulerLimits, step_time: StepTime, p99_ttft_s: float
) -> float:
    """Return an attainable ``long_ttft_s``: twice the idle P99 of the long prompts.

    The result is at least ``p99_ttft_s``, which is also the result without long
    prompts.
    """
    if not len(prompts):
        return p99_ttft_s
    longest = int(np.quantile(prompts, COVERED))
    return max(p99_ttft_s, 2 * idle_ttft_s(longest, limits, step_time))


def token_budget(step_time: StepTime, slo: Slo, least: int = 256) -> int:
    """Return the ``max_num_batched_tokens`` whose full step keeps the TPOT limit.

    The result is the largest power of two, from ``least`` to 8,192, whose step takes at
    most 0.9 of the limit, since decoding requests wait for the chunks of other prompts.
    """
    budget = least
    while budget < 8192 and step_time.fixed_s(2 * budget, 0) <= 0.9 * slo.p99_tpot_s:
        budget *= 2
    return budget
