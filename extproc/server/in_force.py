"""The configuration in force, a frozen value that one assignment replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.config import Config
from extproc.exchange.deciding import Decider
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.gateway_limit import GatewayLimit
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.advice import BudgetCounts
from extproc.routing.models import AnyRouter
from extproc.routing.policy import PoolLoad
from extproc.server.pools.watch import LoadWatch


@dataclass(frozen=True, slots=True)
class Generation:
    """All components that are determined by one configuration."""

    config: Config
    router: AnyRouter
    sampler: FeedbackSampler
    settings: ExchangeSettings
    watch: LoadWatch
    budgets: Mapping[str, BudgetCounts]
    """For each base model, counts of the decided budgets and of the tokens actually
    needed, in bins between candidate thresholds."""
    gateway_limit: GatewayLimit
    """Estimate of the largest body that the gateway can pass to the router."""
    decider: Decider = field(init=False)
    """Decides the requests of ext_proc's streams."""

    def __post_init__(self) -> None:
        decider = Decider(
            self.router,
            self.settings,
            self.sampler.wants,
            self.watch.current,
            self.watch.served_names,
            self.watch.base_names,
            self.gateway_limit,
        )
        object.__setattr__(self, "decider", decider)

    def loads(self) -> Mapping[str, PoolLoad]:
        """Return the known load of each pool with endpoints."""
        return self.watch.current()


class InForce:
    """Holder of the generation in force, which components read on every use.

    Attributes:
        now: the generation in force. A reload assigns the next one.
    """

    __slots__ = ("now",)

    def __init__(self, first: Generation) -> None:
        self.now = first
