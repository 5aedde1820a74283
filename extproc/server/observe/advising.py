"""Threshold advice from live traffic, for the live page and the metrics."""

from __future__ import annotations

from extproc.exchange.events import Observation
from extproc.routing.advice import Advice, BudgetCounts, advise
from extproc.routing.router import Decision, Lesson
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.report import BudgetsReport


def advise_now(generation: Generation) -> dict[str, Advice | None]:
    """Advise on the threshold of each model's smallest pool, if there is enough data.

    Without ``models`` in the configuration, the only model is named ``""``.
    """
    return {
        router.model: advise(generation.budgets[router.model], router.policy)
        for router in generation.router.routers
    }


class Advisor:
    """Counts decided budgets and the tokens actually needed, for ``advise_now``.

    Args:
        in_force: holder of the pools' limits and the budget counts.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def decided(self, decision: Decision) -> None:
        """Count a decided budget."""
        counts = self._in_force.now.budgets.get(decision.pool.model)
        if counts is not None:  # None if a reload has just removed the model
            counts.decided(decision)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens that a request needed, if its response reports them."""
        decision = observation.decision
        counts = self._in_force.now.budgets.get(decision.pool.model)
        if counts is not None:
            counts.observed(decision, observation.outcome)


def report_budgets(counts: BudgetCounts) -> BudgetsReport:
    """Report the distribution of the decided budgets."""
    shares = [round(share, 4) for share in counts.shares()]
    token_shares = [round(share, 4) for share in counts.token_shares()]
    requests = round(counts.requests, 1)
    return BudgetsReport(counts.thresholds, shares, requests, token_shares)
