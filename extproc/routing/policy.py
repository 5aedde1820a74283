"""Budget to pool: capacity, threshold, load, capacity again.

Pools stand in order of ``max_model_len``; two is a case. The last one is the safe
default: whatever cannot be decided goes there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """Why a pool was chosen. Closed: these are metric labels."""

    WITHIN_THRESHOLD = "within_threshold"
    """The smallest pool whose threshold and capacity hold the budget."""
    OVER_THRESHOLD = "over_threshold"
    """Some smaller pool could hold it, but its threshold says otherwise."""
    OVER_CAPACITY = "over_capacity"
    """Larger than every smaller pool's ``max_model_len``."""
    SPILLED = "spilled"
    """The pool of choice is under pressure or down; another took it: a larger one, or
    if no larger one is up, a smaller one that holds the whole budget."""
    UNPARSABLE = "unparsable"
    """Not a request that we understand; the backend will judge it."""
    STORED = "stored"
    """A response that a server keeps, or is asked to keep: always the same pool."""
    TOO_LARGE = "too_large"
    """The body is over the cap, or of more parts than are looked at: not read."""
    LENGTH_UNKNOWN = "length_unknown"
    """No content-length, and configured not to ask for such a body."""
    GATEWAY_LIMIT = "gateway_limit"
    """Larger than what the gateway hands over, as it seems: not requested."""
    UNDECODABLE = "undecodable"
    """A content-encoding that we do not speak, or a body that is not what it says."""
    FAULT = "fault"
    """An error of this program while it decided; logged and counted."""

    # Enum's own hashes the name, in Python: equal to no string's, and slow in a key.
    __hash__ = str.__hash__

    @property
    def failed_open(self) -> bool:
        """Whether no estimate was made; such a decision is never learned from."""
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
    """vLLM's flag of that name: prompt and output tokens of one sequence, at most."""
    threshold_tokens: int
    """Budgets up to and including this go here; <= ``max_model_len``."""
    model: str = ""
    """The base model that it serves; empty if all pools serve the same."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What is known of a pool's load. The default is an idle, healthy pool."""

    available: bool = True
    """False when no endpoint of the pool is healthy."""
    under_pressure: bool = False


IDLE = PoolLoad()

Loads = Callable[[], Mapping[str, PoolLoad] | None]
"""Gives the load of each pool as it is now, or None if nobody watches them."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A pool and why."""

    pool: Pool
    reason: Reason


@dataclass(frozen=True)
class Policy:
    """Chooses among pools.

    Args:
        pools: at least one, in strictly increasing order of ``max_model_len``.

    Raises:
        ValueError: no pool, or not in that order.
    """

    pools: Sequence[Pool]
    _by_name: Mapping[str, Pool] = field(init=False)
    thresholds: Sequence[int] = field(init=False)
    """The largest budget that each smaller pool is meant for."""
    _limits: Sequence[int] = field(init=False)
    """Every number that budgets are held against, increasing."""

    def __post_init__(self) -> None:
        lengths = [pool.max_model_len for pool in self.pools]
        if not lengths or sorted(set(lengths)) != lengths:
            raise ValueError(f"max_model_len of the pools must increase, got {lengths}")
        object.__setattr__(self, "_by_name", {pool.name: pool for pool in self.pools})
        thresholds = [
            min(pool.max_model_len, pool.threshold_tokens) for pool in self.pools[:-1]
        ]
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "_limits", sorted({*lengths, *thresholds}))

    @property
    def default(self) -> Pool:
        """The pool that holds the most: where every failure to decide ends."""
        return self.pools[-1]

    def pool(self, name: str) -> Pool | None:
        """The pool of a name."""
        return self._by_name.get(name)

    def fallback(self, loads: Mapping[str, PoolLoad] | None = None) -> Pool:
        """Choose without a budget: the pool that holds the most and is not down."""
        for pool in reversed(self.pools):
            if (loads or {}).get(pool.name, IDLE).available:
                return pool
        return self.default

    def separates(self, budget_tokens: int, larger_tokens: int) -> bool:
        """Whether two budgets, the smaller first, could end in different choices.

        Where not, every budget between them ends in the same one, whatever the loads.
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
            loads: by pool name; a pool that is not in it counts as idle.
            window_tokens: ``max_model_len`` that the request asks for, whatever its
                budget (``truncate_prompt_tokens``).

        The order is the papers' (arXiv 2604.08075, section 3): capacity, threshold,
        load, and capacity again for the pool that load moved the request to.

        1. A pool that is up and not under pressure takes its own requests.
        2. Else the next larger pool that is up, not under pressure and holds the
           budget takes them.
        3. If there is none and the pool is down, any pool that is up and holds the
           budget does: a larger one first, though under pressure, then a smaller one.
        4. If there is none either, the request stays with its pool.
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
        """Position of the smallest pool meant for a budget, whatever the loads.

        The last one, if none is. The arguments are those of :meth:`choose`.
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
        # A busy pool is better than none, and a smaller one will do if it holds the
        # whole budget, whatever its threshold.
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
