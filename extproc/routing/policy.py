"""From budget to pool: capacity, threshold, load, and capacity again.

Any number of pools is possible, in increasing order of ``max_model_len``. The last pool
is the safe default for every request that cannot be decided.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """Why a pool was chosen. The set is closed: its values are metric labels."""

    WITHIN_THRESHOLD = "within_threshold"
    """The smallest pool whose threshold and capacity fit the budget."""
    OVER_THRESHOLD = "over_threshold"
    """A smaller pool has the capacity, but its threshold is below the budget."""
    OVER_CAPACITY = "over_capacity"
    """The budget exceeds every smaller pool's ``max_model_len``."""
    SPILLED = "spilled"
    """The right pool is under pressure or down; the request goes to a larger pool, or,
    if no larger one is up, to a smaller one that fits the whole budget."""
    UNPARSABLE = "unparsable"
    """The router cannot parse the request; the backend accepts or rejects it."""
    STORED = "stored"
    """The request reads a stored response or asks to store one; such requests always go
    to the same pool."""
    TOO_LARGE = "too_large"
    """The body was not read, because it exceeds the size limit or the limit on
    parts."""
    LENGTH_UNKNOWN = "length_unknown"
    """The request has no content-length, and the configuration does not request bodies
    of unknown length."""
    GATEWAY_LIMIT = "gateway_limit"
    """The body was not requested, because it apparently exceeds the gateway's
    buffer."""
    UNDECODABLE = "undecodable"
    """An unsupported content-encoding, or a body that is not valid in its encoding."""
    FAULT = "fault"
    """An internal error during the decision; logged and counted."""

    # Enum computes its hash in Python from the member's name. That is slow, and the
    # hash differs from that of the equal string.
    __hash__ = str.__hash__

    @property
    def failed_open(self) -> bool:
        """Whether no estimate was made; nothing is learned from such decisions."""
        return self in _FAILED_OPEN


_FAILED_OPEN = frozenset(
    {
        Reason.UNPARSABLE,
        Reason.STORED,
        Reason.TOO_LARGE,
        Reason.LENGTH_UNKNOWN,
        Reason.GATEWAY_LIMIT,
        Reason.UNDECODABLE,
        Reason.FAULT,
    }
)


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of vLLM instances with equal limits."""

    name: str
    max_model_len: int
    """vLLM's flag of that name: maximum prompt plus output of a sequence, in tokens."""
    threshold_tokens: int
    """Maximum budget routed to this pool, in tokens; at most ``max_model_len``."""
    model: str = ""
    """The base model served by the pool; empty if all pools serve the same model."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """The known load of a pool. The default is an idle, healthy pool."""

    available: bool = True
    """False if no endpoint of the pool is healthy."""
    under_pressure: bool = False


IDLE = PoolLoad()

Loads = Callable[[], Mapping[str, PoolLoad] | None]
"""Returns the current load of each pool, or None if loads are not monitored."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A pool and the reason for it."""

    pool: Pool
    reason: Reason


@dataclass(frozen=True)
class Policy:
    """The rule that chooses a pool for a budget.

    Args:
        pools: at least one, in strictly increasing order of ``max_model_len``.

    Raises:
        ValueError: no pool, or pools in another order.
    """

    pools: Sequence[Pool]
    _by_name: Mapping[str, Pool] = field(init=False)
    thresholds: Sequence[int] = field(init=False)
    """The largest budget for each smaller pool, in tokens."""
    _limits: Sequence[int] = field(init=False)
    """Every number that budgets are compared with, in increasing order."""

    def __post_init__(self) -> None:
        lengths = [pool.max_model_len for pool in self.pools]
        if not lengths or sorted(set(lengths)) != lengths:
            raise ValueError(f"max_model_len: {lengths}; expected increasing values")
        object.__setattr__(self, "_by_name", {pool.name: pool for pool in self.pools})
        thresholds = [
            min(pool.max_model_len, pool.threshold_tokens) for pool in self.pools[:-1]
        ]
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "_limits", sorted({*lengths, *thresholds}))

    @property
    def default(self) -> Pool:
        """The largest pool, used if no decision is possible."""
        return self.pools[-1]

    def pool(self, name: str) -> Pool | None:
        """Return the pool with a name, or None."""
        return self._by_name.get(name)

    def fallback(self, loads: Mapping[str, PoolLoad] | None = None) -> Pool:
        """Choose without a budget: the largest pool that is not down."""
        for pool in reversed(self.pools):
            if (loads or {}).get(pool.name, IDLE).available:
                return pool
        return self.default

    def separates(self, budget_tokens: int, larger_tokens: int) -> bool:
        """Return whether two budgets (the smaller first) could get different choices.

        If they could not, every budget between the two gets the same choice as well,
        under any load.
        """
        limits = self._limits
        return bisect_left(limits, budget_tokens) != bisect_left(limits, larger_tokens)

    def choose(
        self,
        budget_tokens: int,
        loads: Mapping[str, PoolLoad] | None = None,
        window_tokens: int = 0,
    ) -> Choice:
        """Choose the pool for a budget.

        Args:
            budget_tokens: upper bound on prompt plus output tokens of one sequence.
            loads: by pool name; a missing pool counts as idle.
            window_tokens: smallest ``max_model_len`` that the request requires,
                whatever its budget (``truncate_prompt_tokens``).

        The order is that of the papers (arXiv 2604.08075, section 3): capacity,
        threshold, load, and capacity again for the pool chosen by load.

        1. If the right pool is up and not under pressure, it takes the request.
        2. Otherwise the request goes to the next larger pool that is up, is not under
           pressure and fits the budget.
        3. If there is no such pool and the right pool is down, the request goes to any
           pool that is up and fits the budget: a larger one first, even under pressure,
           then a smaller one.
        4. If there is no such pool either, the request stays with the right pool.
        """
        capacity_tokens = max(budget_tokens, window_tokens)
        chosen = self.first_fit(budget_tokens, window_tokens)
        reason = self._reason(chosen, capacity_tokens)
        if loads:
            position = self._spill(chosen, capacity_tokens, loads)
            if position != chosen:
                return Choice(self.pools[position], Reason.SPILLED)
        return Choice(self.pools[chosen], reason)

    def first_fit(self, budget_tokens: int, window_tokens: int = 0) -> int:
        """Return the position of the smallest pool for a budget, regardless of load.

        Return the last position if no pool fits. The arguments are those of
        :meth:`choose`.
        """
        capacity_tokens = max(budget_tokens, window_tokens)
        for position, limit in enumerate(self.thresholds):
            if (
                budget_tokens <= limit
                and capacity_tokens <= self.pools[position].max_model_len
            ):
                return position
        return len(self.thresholds)

    def _reason(self, chosen: int, budget_tokens: int) -> Reason:
        if chosen < len(self.pools) - 1 or len(self.pools) == 1:
            return Reason.WITHIN_THRESHOLD
        largest_smaller = self.pools[-2].max_model_len
        if budget_tokens > largest_smaller:
            return Reason.OVER_CAPACITY
        return Reason.OVER_THRESHOLD

    def _spill(
        self, chosen: int, budget_tokens: int, loads: Mapping[str, PoolLoad]
    ) -> int:
        load = loads.get(self.pools[chosen].name, IDLE)
        if load.available and not load.under_pressure:
            return chosen
        for position in range(chosen + 1, len(self.pools)):
            candidate = self.pools[position]
            other = loads.get(candidate.name, IDLE)
            relieved = other.available and not other.under_pressure
            if relieved and budget_tokens <= candidate.max_model_len:
                return position
        if not load.available:
            return self._any_available(chosen, budget_tokens, loads)
        return chosen

    def _any_available(
        self, chosen: int, budget_tokens: int, loads: Mapping[str, PoolLoad]
    ) -> int:
        # A busy pool is better than none, and a smaller pool is acceptable if it fits
        # the whole budget, even above its threshold.
        others: list[int] = [
            *range(chosen + 1, len(self.pools)),
            *reversed(range(chosen)),
        ]
        for position in others:
            candidate = self.pools[position]
            load = loads.get(candidate.name, IDLE)
            if load.available and budget_tokens <= candidate.max_model_len:
                return position
        return chosen
