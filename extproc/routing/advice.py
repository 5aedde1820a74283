"""The threshold that would save most for the observed budgets, and its risk.

The saving is the papers' formula, alpha (1 - 1/rho) (arXiv 2604.08075). alpha is the
share of requests whose budget is within the threshold. rho is the throughput, in
requests a second, of an instance whose window is that threshold, divided by the
throughput of an instance of the largest pool. A smaller window fits more sequences, but
each step then takes longer; two values of rho bracket the truth:

- ``slots``: the ratio of the numbers of sequences, which is also the ratio of windows.
  The papers use this value; it is an upper bound.
- ``steps``: the number of sequences divided by the duration of a step, ``W + H n``,
  with W = 8 ms and H = 0.65 ms (arXiv 2604.09613's constants for an A100 instance with
  1,048,576 tokens of KV cache, 16 sequences of 64K). For a window of 8K, this rho is
  1.6; the papers measured 4.

``steps`` ranks the thresholds. Neither value depends on the hardware in use, nor
includes the gain of raising ``max_num_seqs`` alone; ``extproc plan`` considers both.
The advice is for ``max_model_len`` and ``threshold_tokens`` of the smallest pool
together; the router never applies it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from extproc.routing.decision import Decision, Outcome
from extproc.routing.misroute import needed_tokens
from extproc.routing.policy import Policy

MIN_REQUESTS = 200
"""Minimum number of requests for advice. With fewer, a share's error is 7 % or more."""

MEMORY_REQUESTS = 20_000.0
"""Number of requests over which a count decays to 1/e: about an afternoon of
traffic."""

KV_CACHE_TOKENS = 1 << 20
MAX_SEQUENCES = 256
"""vLLM's default ``max_num_seqs`` on its larger GPUs; larger values were not
measured."""
_STEP_FIXED_S = 8e-3
_STEP_PER_SEQUENCE_S = 0.65e-3

_SMALLEST_TOKENS = 1024
_RESCALE_AT = 1e100


def candidate_thresholds(largest_window: int) -> list[int]:
    """Return thresholds to compare: 1,024 and 1,536 tokens times powers of two.

    Args:
        largest_window: ``max_model_len`` of the largest pool; all candidates are
            smaller.
    """
    candidates = []
    power = _SMALLEST_TOKENS
    while power < largest_window:
        candidates += [t for t in (power, power * 3 // 2) if t < largest_window]
        power *= 2
    return candidates


@dataclass(frozen=True, slots=True)
class Prospect:
    """The effect of one threshold."""

    threshold_tokens: int
    short_fraction: float
    """Share of requests whose budget is within the threshold, 0 to 1."""
    saving: float
    """Share of a homogeneous fleet's instances that would be saved, calculated with the
    rho ``steps``."""
    saving_at_most: float
    """Upper bound on the saving, calculated with the rho ``slots``."""
    under_rate: float | None
    """Share of observed requests that were estimated to fit but did not; None if no
    request was observed."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The best threshold and the current one."""

    best: Prospect
    current: Prospect
    requests: float
    """Decayed number of requests from which the shares are computed."""
    prospects: Sequence[Prospect] = ()
    """Every candidate threshold, in increasing order."""


class BudgetCounts:
    """Counts of requests by budget and by needed tokens, between thresholds.

    Not thread-safe. Counting a request takes two bisections.

    Args:
        thresholds: limits in tokens, in increasing order.
        memory: number of requests over which a count decays to 1/e.
    """

    def __init__(
        self, thresholds: Sequence[int], memory: float = MEMORY_REQUESTS
    ) -> None:
        self.thresholds = list(thresholds)
        bins = len(self.thresholds) + 1
        # Newer requests add more to the counts, so that the older counts need not be
        # multiplied at every request.
        self._growth = 1.0 + 1.0 / memory
        self._weight = 1.0
        self._budgets = [0.0] * bins
        self._tokens = [0.0] * bins
        self._fitting = [0.0] * bins
        self._exceeding = [0.0] * (bins + 1)

    def decided(self, decision: Decision) -> None:
        """Count the budget of a decision, if it is based on an estimate."""
        if not decision.reason.failed_open:
            self.add(decision.bound_budget_tokens)

    def observed(self, decision: Decision, outcome: Outcome) -> None:
        """Count the tokens that a request needed, if its response reports them."""
        needed = needed_tokens(decision, outcome)
        if needed is not None:
            self.observe(decision.bound_budget_tokens, needed)

    def add(self, budget_tokens: int) -> None:
        """Count a request by the budget that was compared with the limits."""
        self._weight *= self._growth
        if self._weight > _RESCALE_AT:
            self._rescale()
        position = bisect_left(self.thresholds, budget_tokens)
        self._budgets[position] += self._weight
        self._tokens[position] += self._weight * budget_tokens

    def observe(self, budget_tokens: int, needed_tokens: int) -> None:
        """Count a request whose needed tokens are known.

        The needed tokens are those of the prompt plus the output or its limit.
        """
        held = bisect_left(self.thresholds, budget_tokens)
        needed = bisect_left(self.thresholds, needed_tokens)
        self._fitting[held] += self._weight
        if held < needed:  # estimated to fit each threshold in between, but did not
            self._exceeding[held] += self._weight
            self._exceeding[needed] -= self._weight

    def _rescale(self) -> None:
        for counts in (self._budgets, self._tokens, self._fitting, self._exceeding):
            counts[:] = [count / self._weight for count in counts]
        self._weight = 1.0

    @property
    def requests(self) -> float:
        """Decayed number of requests."""
        return sum(self._budgets) / self._weight

    def shares(self) -> list[float]:
        """Share of requests between consecutive thresholds.

        The first share is of budgets below the first threshold, the last share of
        budgets above the last threshold. The shares sum to 1.
        """
        return _normalized(self._budgets)

    def token_shares(self) -> list[float]:
        """Share of all budgeted tokens in each interval, since cost follows tokens."""
        return _normalized(self._tokens)

    def within(self) -> list[float]:
        """Share of requests within each threshold, in increasing order."""
        return list(accumulate(self.shares()))[:-1]

    def under_rates(self) -> list[float | None]:
        """Return, by threshold, the share of requests wrongly estimated to fit."""
        fitting = list(accumulate(self._fitting))[:-1]
        exceeding = list(accumulate(self._exceeding))
        return [
            max(0.0, exceeded) / fits if fits > 0 else None
            for fits, exceeded in zip(fitting, exceeding, strict=False)
        ]


def _normalized(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def budget_counts(policy: Policy) -> BudgetCounts:
    """Return empty counts for every threshold that the smallest pool could have."""
    smallest, largest = policy.pools[0], policy.pools[-1]
    candidates = candidate_thresholds(largest.max_model_len)
    return BudgetCounts(sorted({*candidates, smallest.threshold_tokens}))


def step_gain(window: int, largest_window: int) -> float:
    """Return the rho ``steps``, which is at most the ratio of windows."""
    return _sequences_per_s(window) / _sequences_per_s(largest_window)


def _sequences_per_s(window: int) -> float:
    sequences = max(1, min(MAX_SEQUENCES, KV_CACHE_TOKENS // window))
    return sequences / (_STEP_FIXED_S + _STEP_PER_SEQUENCE_S * sequences)


def advise(counts: BudgetCounts, policy: Policy) -> Advice | None:
    """Find the threshold that gives the smallest pool the largest ``saving``.

    Args:
        counts: made by ``budget_counts`` for the same policy.
        policy: the current pools.

    Returns:
        None before ``MIN_REQUESTS`` requests, or if there is only one pool.
    """
    if counts.requests < MIN_REQUESTS or len(policy.pools) < 2:
        return None
    current_threshold = policy.pools[0].threshold_tokens
    largest_window = policy.pools[-1].max_model_len
    prospects = [
        _prospect(threshold, largest_window, within, under)
        for threshold, within, under in zip(
            counts.thresholds, counts.within(), counts.under_rates(), strict=True
        )
    ]
    best = max(prospects, key=lambda prospect: prospect.saving)
    current = prospects[counts.thresholds.index(current_threshold)]
    return Advice(best, current, counts.requests, prospects)


def _prospect(
    threshold: int, largest_window: int, within: float, under: float | None
) -> Prospect:
    slots = largest_window / threshold
    return Prospect(
        threshold_tokens=threshold,
        short_fraction=within,
        saving=within * (1.0 - 1.0 / step_gain(threshold, largest_window)),
        saving_at_most=within * (1.0 - 1.0 / slots),
        under_rate=under,
    )
