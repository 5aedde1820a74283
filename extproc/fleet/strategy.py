"""Strategies that choose a simulated request's pool: the router and baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from extproc.fleet.synthetic_bodies import Bodies
from extproc.routing.bound import Bounded
from extproc.routing.policy import Policy, Pool, PoolLoad
from extproc.routing.prior import known_families
from extproc.routing.ratio import Ema, TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.risk import Margin, NoMargin
from extproc.routing.router import Decision, Outcome, Router

#: The rule of thumb of most gateways for bytes per token.
RULE_OF_THUMB_BYTES_PER_TOKEN = 4
#: The simulated router learns from each response up to this number, and then from every
#: ``LEARNED_EVERY``-th.
LEARNED_AT_FIRST = 1000
LEARNED_EVERY = 20


class StrategyName(StrEnum):
    """A rule that chooses a pool."""

    ROUTER = "router"
    """The shipped router with its default estimator, on randomly generated bodies."""
    EMA = "ema"
    """The shipped router with the papers' estimator."""
    ORACLE = "oracle"
    """Uses the true prompt and output tokens."""
    PROMPT_LENGTH = "prompt-length"
    """Uses the true prompt tokens and nothing else."""
    BYTES_PER_4 = "bytes/4"
    """Uses body bytes divided by 4, plus the declared limit."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The inputs of a strategy; only an oracle uses ``output_tokens``."""

    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None


class Strategy(Protocol):
    """A rule that chooses a pool's index, and learns from the outcome."""

    def choose(
        self, arrival: Arrival, loads: Mapping[str, PoolLoad]
    ) -> tuple[int, object]:
        """Return the index of the pool, and the state to pass to :meth:`learn`."""

    def learn(self, kept: object, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from the usage of the response."""


class Routed:
    """The shipped router with drawn bodies.

    The router learns from every response at first and then from a small sample, as
    behind Envoy.
    """

    def __init__(self, router: Router, bodies: Bodies) -> None:
        self.router = router
        self._bodies = bodies
        self._responses = 0
        self._positions = {
            pool.name: index for index, pool in enumerate(router.policy.pools)
        }

    def choose(
        self, arrival: Arrival, loads: Mapping[str, PoolLoad]
    ) -> tuple[int, Decision]:
        """Draw the body, then decide like ``extproc serve``."""
        request = self._bodies.draw(arrival.prompt_tokens, arrival.max_tokens)
        decision = self.router.route(request, loads=loads)
        return self._positions[decision.pool.name], decision

    def learn(self, kept: object, prompt_tokens: int, output_tokens: int) -> None:
        """Pass the usage to the router if the response is in the sample."""
        assert isinstance(kept, Decision)
        self._responses += 1
        if self._responses > LEARNED_AT_FIRST and self._responses % LEARNED_EVERY:
            return
        self.router.learn(kept, Outcome(200, prompt_tokens, output_tokens))


class Rule:
    """A fixed rule that applies the policy to a budget computed from the arrival."""

    def __init__(
        self, name: StrategyName, policy: Policy, bodies: Bodies, default_output: int
    ) -> None:
        self._name = name
        self._policy = policy
        self._bodies = bodies
        self._default_output = default_output
        self._positions = {pool.name: index for index, pool in enumerate(policy.pools)}

    def choose(
        self, arrival: Arrival, loads: Mapping[str, PoolLoad]
    ) -> tuple[int, None]:
        """Compute the budget and choose by the policy."""
        choice = self._policy.choose(self._budget_tokens(arrival), loads)
        return self._positions[choice.pool.name], None

    def _budget_tokens(self, arrival: Arrival) -> int:
        limit = arrival.max_tokens
        if self._name is StrategyName.ORACLE:
            # A declared limit is the maximum that the client may need.
            wanted = arrival.output_tokens if limit is None else limit
            return arrival.prompt_tokens + wanted
        if self._name is StrategyName.PROMPT_LENGTH:
            return arrival.prompt_tokens
        request = self._bodies.draw(arrival.prompt_tokens, limit)
        prompt_tokens = -(-request.body_bytes // RULE_OF_THUMB_BYTES_PER_TOKEN)
        return prompt_tokens + (self._default_output if limit is None else limit)

    def learn(self, kept: object, prompt_tokens: int, output_tokens: int) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """The parameters of a strategy, except its random generator.

    If the client declares no limit, the shipped router learns its allowance and bytes/4
    uses ``default_output_tokens``.
    """

    name: StrategyName
    mix: Mapping[str, float]
    """Share of requests for each kind of text, for strategies that use bytes."""
    variation_factor: float = 1.0
    """Factor on the variation of bytes per token between requests of a kind (see
    :class:`extproc.fleet.synthetic_bodies.Bodies`)."""
    default_output_tokens: int = 512
    under_estimate_rate: float = 0.01
    """The shipped router's risk, 0.01 by default."""

    @property
    def reads_bodies(self) -> bool:
        """Whether the strategy uses bytes, which takes most of a simulation's time."""
        return self.name not in (StrategyName.ORACLE, StrategyName.PROMPT_LENGTH)


def build_strategy(
    spec: StrategySpec, pools: Sequence[Pool], rng: np.random.Generator
) -> Strategy:
    """Return the strategy with the given name for the given pools."""
    bodies = Bodies(dict(spec.mix), rng, spec.variation_factor)
    policy = Policy(pools)
    if spec.name in (StrategyName.ROUTER, StrategyName.EMA):
        estimator = (
            Bounded(TextEstimator(known_families()), Margin(spec.under_estimate_rate))
            if spec.name is StrategyName.ROUTER
            else Bounded(Ema(), NoMargin())
        )
        return Routed(Router(policy, estimator, TextRatios()), bodies)
    return Rule(spec.name, policy, bodies, spec.default_output_tokens)
