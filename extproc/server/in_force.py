"""The configuration in force: one frozen value, replaced by one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from extproc.config import Config
from extproc.exchange.feedback import FeedbackSampler
from extproc.exchange.machine import ExchangeSettings
from extproc.routing.advice import BudgetCounts
from extproc.routing.policy import PoolLoad
from extproc.routing.router import Router
from extproc.server.pools.watch import LoadWatch


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything that one configuration determines while it is in force."""

    config: Config
    router: Router
    sampler: FeedbackSampler
    settings: ExchangeSettings
    watch: LoadWatch
    budgets: BudgetCounts
    """The budgets decided and the tokens needed, between candidate thresholds."""

    def loads(self) -> Mapping[str, PoolLoad]:
        """Return the known load of each pool that has endpoints."""
        return self.watch.current()


class InForce:
    """Holds the generation in force; everything that depends on it asks here.

    Attributes:
        now: the generation in force. A reload assigns the next one.
    """

    __slots__ = ("now",)

    def __init__(self, first: Generation) -> None:
        self.now = first
