"""Assignment of requests to pools by a strategy that learns from each request."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from extproc.fleet.declared import Declared
from extproc.fleet.replay import Replay
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.strategy import Arrival, Strategy, StrategySpec, build_strategy
from extproc.fleet.workload import Lengths, Recorded, Tokens
from extproc.routing.misroute import right_position
from extproc.routing.policy import Policy, Pool

#: A pool with fewer assigned requests than this number gets further drawn ones.
_FEW = 1000
_DRAWN = 1_000_000


@dataclass(frozen=True, slots=True)
class Tier:
    """A pool before it is sized."""

    name: str
    limits: SchedulerLimits
    threshold_tokens: int

    @property
    def routing_pool(self) -> Pool:
        """Return the pool as the router sees it."""
        return Pool(self.name, self.limits.max_model_len, self.threshold_tokens)


@dataclass(frozen=True, slots=True)
class PoolTraffic:
    """The traffic of one pool."""

    share: float
    """Share of all requests that reach the pool."""
    lengths: Recorded
    refused: float = 0.0
    """Share of all requests that the pool's front end refuses, because the prompt alone
    exceeds the window."""
    replay: Replay | None = None
    """The pool's requests at their recorded times, if a file is replayed."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The traffic of each pool under one strategy.

    Attributes:
        rejected: share of requests that exceed the window of every pool.
        under, over: shares of requests that the strategy sent to a smaller or a larger
            pool than the smallest one whose threshold fits the request's true budget.
    """

    pools: tuple[PoolTraffic, ...]
    rejected: float
    under: float
    over: float


@dataclass(frozen=True, slots=True)
class Inquiry:
    """The conditions under which a strategy assigns requests."""

    tiers: Sequence[Tier]
    strategy: StrategySpec | Strategy
    """A specification, or a built strategy, which learns from none of the requests."""
    seed: int
    declared: Declared = Declared.EXACT
    requests: int = 20_000
    """Number of requests to assign."""
    learning_lag: int = 2000
    """Number of requests assigned between a request and its feedback. The strategy
    first assigns twice this number, so that it has learned before the count starts."""
    of_a_kind: int = 20_000
    """Number of requests to draw near or above the range of a pool that gets few, of
    which the pool gets those that the strategy sends to it."""


def assign(lengths: Lengths, inquiry: Inquiry, *, fill: bool = True) -> Assignment:
    """Assign drawn requests by the strategy.

    With ``fill``, if few of these requests reach a pool, more requests are drawn for
    it. Their budgets exceed 0.5 to 0.7 of the next smaller pool's threshold, and they
    are weighted by how rare such requests are.
    """
    desk_rng, traffic = _generators(inquiry)
    desk = _Desk(inquiry, lengths, desk_rng)
    prompts, outputs = lengths.draw(traffic, inquiry.requests)
    placed = desk.place(prompts, outputs)
    asked = _assignment(inquiry, desk, placed, prompts, outputs)
    if not fill:
        return asked
    pools = [
        _more_of_its_kind(inquiry, desk, lengths, traffic, index)
        if index and len(pool.lengths.prompts) < _FEW
        else pool
        for index, pool in enumerate(asked.pools)
    ]
    # Some requests moved up from a lower pool: scale the shares so that they add up to
    # the share of requests that were not rejected.
    whole = sum(pool.share for pool in pools)
    scale = (1 - asked.rejected) / whole if whole else 0.0
    scaled = [replace(pool, share=scale * pool.share) for pool in pools]
    return replace(asked, pools=tuple(scaled))


def assign_replay(replay: Replay, inquiry: Inquiry) -> Assignment:
    """Assign every request of a replayed period by the strategy, in order."""
    desk_rng, _ = _generators(inquiry)
    desk = _Desk(inquiry, replay.lengths, desk_rng)
    placed = desk.place(replay.prompts, replay.outputs)
    asked = _assignment(inquiry, desk, placed, replay.prompts, replay.outputs)
    pools = [
        replace(pool, replay=replay.only(placed == index))
        for index, pool in enumerate(asked.pools)
    ]
    return replace(asked, pools=tuple(pools))


def _generators(
    inquiry: Inquiry,
) -> tuple[np.random.Generator, np.random.Generator]:
    """Return random generators for strategy and traffic, equal for all strategies."""
    seeds = np.random.SeedSequence(inquiry.seed).spawn(2)
    return np.random.default_rng(seeds[0]), np.random.default_rng(seeds[1])


def _assignment(
    inquiry: Inquiry, desk: "_Desk", placed: Tokens, prompts: Tokens, outputs: Tokens
) -> Assignment:
    count = len(placed)
    pools = [
        PoolTraffic(
            float((placed == index).mean()),
            Recorded(prompts[placed == index], outputs[placed == index]),
            desk.refused[index] / count,
        )
        for index in range(len(inquiry.tiers))
    ]
    rejected = float((placed == len(inquiry.tiers)).mean())
    return Assignment(tuple(pools), rejected, desk.under / count, desk.over / count)


def _more_of_its_kind(
    inquiry: Inquiry,
    desk: "_Desk",
    lengths: Lengths,
    rng: np.random.Generator,
    index: int,
) -> PoolTraffic:
    """Return the traffic of a rarely chosen pool, drawn near or above its range."""
    prompts, outputs = lengths.draw(rng, _DRAWN)
    totals = prompts + outputs
    threshold = inquiry.tiers[index - 1].threshold_tokens
    # Assign as many requests as possible, and at least those near the threshold.
    cutoff = float(np.quantile(totals, 1 - inquiry.of_a_kind / _DRAWN))
    near = totals > min(0.7 * threshold, max(0.5 * threshold, cutoff))
    prompts, outputs = (
        prompts[near][: inquiry.of_a_kind],
        outputs[near][: inquiry.of_a_kind],
    )
    desk.reset()
    placed = desk.place(prompts, outputs, learns=False) == index
    share = float(near.mean()) * float(placed.mean()) if len(placed) else 0.0
    refused = desk.refused[index] / max(1, len(placed)) * float(near.mean())
    return PoolTraffic(share, Recorded(prompts[placed], outputs[placed]), refused)


class _Desk:
    """Assigns requests by a strategy, as :mod:`extproc.fleet.simulation` does."""

    def __init__(
        self, inquiry: Inquiry, lengths: Lengths, rng: np.random.Generator
    ) -> None:
        tiers = inquiry.tiers
        pools = [tier.routing_pool for tier in tiers]
        text, past = rng.spawn(2)
        self._windows = [tier.limits.max_model_len for tier in tiers]
        strategy = inquiry.strategy
        self._learns = isinstance(strategy, StrategySpec)
        if isinstance(strategy, StrategySpec):
            strategy = build_strategy(strategy, pools, text)
        self._strategy = strategy
        self._declared = inquiry.declared
        self._lag = inquiry.learning_lag
        self._policy = Policy(pools)
        self._pending: deque[tuple[object, int, int]] = deque()
        self.reset()
        if self._learns:  # first from other requests
            self.place(*lengths.draw(past, 2 * self._lag))
            self.reset()

    def reset(self) -> None:
        """Reset the counts but not the learned state."""
        self.refused = [0] * len(self._windows)
        self.under = self.over = 0

    def place(self, prompts: Tokens, outputs: Tokens, *, learns: bool = True) -> Tokens:
        """Return the index of each request's pool, or the number of pools if none fits.

        With ``learns`` false, the strategy does not learn from these requests: requests
        that are all of similar length would bias it.
        """
        placed = np.empty(len(prompts), np.int64)
        for index, (prompt, output) in enumerate(
            zip(prompts.tolist(), outputs.tolist(), strict=True)
        ):
            declared = self._declared.limit(output)
            position, kept = self._strategy.choose(
                Arrival(prompt, output, declared), {}
            )
            right = right_position(self._policy, prompt + output)
            self.under += position < right
            self.over += position > right
            while position < len(self._windows) and prompt >= self._windows[position]:
                self.refused[position] += 1
                position += 1
            placed[index] = position
            if not (learns and self._learns):
                continue
            self._pending.append((kept, prompt, output))
            if len(self._pending) > self._lag:
                self._strategy.learn(*self._pending.popleft())
        return placed
