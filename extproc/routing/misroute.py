"""The tokens that a request needed, and whether its pool was the right one.

The only definition of both: the router, ``replay``, recordings, threshold advice, the
demo and the simulated fleet all judge by it.
"""

from __future__ import annotations

from enum import StrEnum

from extproc.routing.decision import Decision, Outcome
from extproc.routing.policy import Policy, Reason


class Misroute(StrEnum):
    """How a decision was wrong, judged by the response's usage."""

    SHORT_OVERFLOW = "short_overflow"
    """Needed more tokens than its pool is meant for; a larger pool was right."""
    LONG_WASTE = "long_waste"
    """A smaller pool would have held it, by its threshold too."""
    TRUNCATED = "truncated"
    """The pool's window cut the output off before the client's own limit did."""


def needed_tokens(decision: Decision, outcome: Outcome) -> int | None:
    """Return the tokens that one sequence of a request needed.

    They are the counted prompt tokens and

    1. if the client declared an output limit, what was reserved under it (see
       ``declared_allowance``; all of it at a truncation risk of 0), or the tokens
       generated if they are more, or
    2. if it declared none, the tokens generated, per sequence of the prompt.

    Returns:
        None if the usage does not say: a status other than 200, no counts, several
        prompts whose counts are one sum, a decision that failed open.
    """
    prompt_tokens = _counted_prompt(decision, outcome)
    if prompt_tokens is None:
        return None
    completion_tokens = _completion_of_one(decision, outcome)
    if decision.declared:
        return prompt_tokens + max(decision.output_tokens, completion_tokens or 0)
    return None if completion_tokens is None else prompt_tokens + completion_tokens


def right_position(policy: Policy, needed_tokens: int, window_tokens: int = 0) -> int:
    """Return the position of the pool that was right for a need, whatever the loads.

    Args:
        policy: the pools that there were to choose from.
        needed_tokens: of one sequence, prompt and output.
        window_tokens: ``max_model_len`` that the request demanded, whatever its need.
    """
    return policy.first_fit(needed_tokens, window_tokens)


def find_misroute(
    policy: Policy, decision: Decision, outcome: Outcome
) -> Misroute | None:
    """Judge a decision by its response, or return None if it was right or unknown.

    Nothing is wrong with the largest pool for a need that no pool holds.

    Args:
        policy: the pools that there were to choose from.
        decision: its pool is one of the policy's.
        outcome: of the same request.
    """
    chosen = decision.pool
    prompt_tokens = _counted_prompt(decision, outcome)
    # 1. No count of this very prompt: nothing to judge by.
    if prompt_tokens is None:
        return None
    if chosen != policy.default:
        # 2. The prompt alone exceeds the window, or fills it and Envoy had to retry.
        retried = outcome.attempts > 1 and prompt_tokens >= chosen.max_model_len
        if retried or prompt_tokens > chosen.max_model_len:
            return Misroute.SHORT_OVERFLOW
        # 3. vLLM lowers max_tokens to what the window leaves rather than refuse.
        if _cut_by_window(decision, outcome, prompt_tokens):
            return Misroute.TRUNCATED
    # 4. Neither a declared limit nor a count of the output.
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
    """The prompt tokens that the response counted for the routed prompt."""
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
    """The completion tokens of one sequence, rounded up; the usage sums them."""
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
