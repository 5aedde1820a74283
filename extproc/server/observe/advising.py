"""Threshold advice from the requests that pass: for the page and the metrics."""

from __future__ import annotations

from extproc.exchange.events import Observation
from extproc.routing.advice import Advice, BudgetCounts, advise
from extproc.routing.router import Decision, Lesson
from extproc.server.in_force import Generation, InForce
from extproc.server.observe.report import BudgetsReport


def advise_now(generation: Generation) -> Advice | None:
    """Advise on the threshold of the smallest pool, once there is advice to give."""
    return advise(generation.budgets, generation.router.policy)


class Advisor:
    """Counts the budgets decided and the tokens needed, for ``advise_now``.

    Args:
        in_force: whose pools' limits are in question, and whose budgets are counted.
    """

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force

    def decided(self, decision: Decision) -> None:
        """Count a budget."""
        self._in_force.now.budgets.decided(decision)

    def observed(self, observation: Observation, lesson: Lesson) -> None:
        """Count the tokens that a request needed, if its response says them."""
        budgets = self._in_force.now.budgets
        budgets.observed(observation.decision, observation.outcome)


def report_budgets(counts: BudgetCounts) -> BudgetsReport:
    """Report the distribution of the budgets decided."""
    shares = [round(share, 4) for share in counts.shares()]
    token_shares = [round(share, 4) for share in counts.token_shares()]
    requests = round(counts.requests, 1)
    return BudgetsReport(counts.thresholds, shares, requests, token_shares)
