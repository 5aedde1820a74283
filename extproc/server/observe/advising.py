"""Threshold advice from the requests that pass: for the page and the metrics."""

from __future__ import annotations

from extproc.exchange.events import Observation
from extproc.routing.advice import Advice, BudgetCounts, advise
from extproc.routing.router import Decision, Lesson
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.report import BudgetsReport


def advise_now(generation: Generation) -> dict[str, Advice | None]:
    """Advise on each model's smallest pool's threshold, once there is advice to give.

    The only model of a configuration without ``models`` is named ``""``.
    """
    return {
        router.model: advise(generation.budgets[router.model], router.policy)
        for router in generation.router.routers
    }


class Advisor:
    """Counts the budgets decided and the tokens needed, for ``advise_now``.

    Args:
        in_force: whose pools' limits are in question, and whose budgets are counted.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def decided(self, decision: Decision) -> None:
        """Count a budget."""
        counts = self._in_force.now.budgets.get(decision.pool.model)
        if counts is not None:  # None: of a model that was configured until now
            counts.decided(decision)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens that a request needed, if its response says them."""
        decision = observation.decision
        counts = self._in_force.now.budgets.get(decision.pool.model)
        if counts is not None:
            counts.observed(decision, observation.outcome)


def report_budgets(counts: BudgetCounts) -> BudgetsReport:
    """Report the distribution of the budgets decided."""
    shares = [round(share, 4) for share in counts.shares()]
    token_shares = [round(share, 4) for share in counts.token_shares()]
    requests = round(counts.requests, 1)
    return BudgetsReport(counts.thresholds, shares, requests, token_shares)
