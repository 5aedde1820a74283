"""The tokens that a request needed, and whether its pool was the right one.

The only definition of both: the router, ``replay``, recordings, threshold advice, the
demo and the simulated fleet all use it.
"""

from __future__ import annotations

from enum import StrEnum

from extproc.routing.decision import Decision, Outcome
from extproc.routing.policy import Policy, Reason


class Misroute(StrEnum):
    """How a decision was wrong, judged by the response's usage."""

    SHORT_OVERFLOW = "short_overflow"
    """The request needed more tokens than its pool accepts; a larger pool was right."""
    LONG_WASTE = "long_waste"
    """The request would have fit the window and the threshold of a smaller pool."""
    TRUNCATED = "truncated"
    """The pool's window cut the output off before the client's own limit did."""


def needed_tokens(decision: Decision, outcome: Outcome) -> int | None:
    """Return the tokens that one sequence of a request needed.

    The sum of the counted prompt tokens and the output tokens, which are

    1. if the client declared an output limit: the tokens reserved under it (see
       ``declared_allowance``; the whole limit at a truncation risk of 0), or the
       generated tokens, whichever are more;
    2. if it declared none: the tokens generated per sequence.

    Returns:
        None if the usage does not determine them: a status other than 200, no counts,
        one sum over several prompts, or a decision that failed open.
    """
    prompt_tokens = _counted_prompt(decision, outcome)
    if prompt_tokens is None:
        return None
    completion_tokens = _completion_of_one(decision, outcome)
    if decision.declared:
        return prompt_tokens + max(decision.output_tokens, completion_tokens or 0)
    return None if completion_tokens is None else prompt_tokens + completion_tokens


def right_position(policy: Policy, needed_tokens: int, window_tokens: int = 0) -> int:
    """Return the position of the right pool for a need, regardless of load.

    Args:
        policy: the pools to choose from.
        needed_tokens: prompt and output tokens of one sequence.
        window_tokens: smallest ``max_model_len`` that the request requires.
    """
    return policy.first_fit(needed_tokens, window_tokens)


def find_misroute(
    policy: Policy, decision: Decision, outcome: Outcome
) -> Misroute | None:
    """Judge a decision by its response; return None if it was right or is unknown.

    The largest pool is right for a need that exceeds every pool.

    Args:
        policy: the pools to choose from.
        decision: its pool belongs to the policy.
        outcome: of the same request.
    """
    chosen = decision.pool
    prompt_tokens = _counted_prompt(decision, outcome)
    # 1. The response has no count of this very prompt.
    if prompt_tokens is None:
        return None
    if chosen != policy.default:
        # 2. The prompt alone exceeds the window, or fills it and Envoy had to retry.
        retried = outcome.attempts > 1 and prompt_tokens >= chosen.max_model_len
        if retried or prompt_tokens > chosen.max_model_len:
            return Misroute.SHORT_OVERFLOW
        # 3. vLLM lowers max_tokens to the room left in the window instead of refusing.
        if _cut_by_window(decision, outcome, prompt_tokens):
            return Misroute.TRUNCATED
    # 4. The need is unknown: there is neither a declared limit nor a count of the
    # output.
    needed = needed_tokens(decision, outcome)
    if needed is None:
        return None
    fitting = policy.pools[right_position(policy, needed, decision.window_tokens)]
    # 5. A larger pool was right.
    if fitting.max_model_len > chosen.max_model_len:
        return Misroute.SHORT_OVERFLOW
    # 6. A smaller pool was right, unless load moved the request up on purpose.
    if (
        fitting.max_model_len < chosen.max_model_len
        and decision.reason is not Reason.SPILLED
    ):
        return Misroute.LONG_WASTE
    return None


def _counted_prompt(decision: Decision, outcome: Outcome) -> int | None:
    """Return the prompt tokens that the response counted for the routed prompt."""
    if (
        decision.reason.failed_open
        or outcome.status != 200
        or not outcome.prompt_tokens
        or outcome.prompt_tokens < 0
        or decision.prompts > 1
    ):
        return None
    return outcome.prompt_tokens


def _completion_of_one(decision: Decision, outcome: Outcome) -> int | None:
    """Return the completion tokens per sequence, rounded up; usage has their sum."""
    if outcome.completion_tokens is None:
        return None
    return -(-outcome.completion_tokens // decision.sequences)


def _cut_by_window(decision: Decision, outcome: Outcome, prompt_tokens: int) -> bool:
    completion_tokens = _completion_of_one(decision, outcome)
    if not outcome.truncated or completion_tokens is None:
        return False
    filled = prompt_tokens + completion_tokens >= decision.pool.max_model_len
    limit_tokens = decision.client_limit_tokens
    own_limit = limit_tokens is not None and completion_tokens >= limit_tokens
    return filled and not own_limit
