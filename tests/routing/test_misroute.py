"""One table of needs and misroutes, which all code that judges decisions must match."""

from dataclasses import dataclass

import numpy as np
import pytest

from extproc.commands.recording_report import Recorded, score_recording
from extproc.config import Config, PoolConfig
from extproc.demo.client import Reply
from extproc.demo.results import Measured, Sent, judge
from extproc.demo.stack.access_log import Record
from extproc.demo.workload import DemoRequest
from extproc.exchange.events import Observation
from extproc.fleet.assignment import Inquiry, Tier, assign
from extproc.fleet.declared import Declared
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Recorded as Lengths
from extproc.routing.advice import BudgetCounts
from extproc.routing.bound import Bounded
from extproc.routing.decision import Decision, Outcome
from extproc.routing.evaluation import Evaluation
from extproc.routing.misroute import Misroute, find_misroute, needed_tokens
from extproc.routing.policy import Policy, Pool, Reason
from extproc.routing.ratio import TextEma, TextRatios
from extproc.routing.router import Router

SHORT = Pool("short", 1000, 800)
MIDDLE = Pool("middle", 3000, 3000)
LONG = Pool("long", 8000, 8000)
TWO, THREE = (SHORT, LONG), (SHORT, MIDDLE, LONG)


@dataclass(frozen=True)
class Case:
    """One decision and its response, with the expected need and verdict."""

    outcome: Outcome
    needed: int | None
    misroute: Misroute | None = None
    pool: Pool = SHORT
    pools: tuple[Pool, ...] = TWO
    limit: int | None = None
    """Output limit that the client declares."""
    reason: Reason = Reason.WITHIN_THRESHOLD
    prompts: int = 1
    sequences: int = 1

    @property
    def decision(self) -> Decision:
        return Decision(
            self.pool,
            self.reason,
            prompt_tokens=300,
            bound_tokens=400,
            output_tokens=50 if self.limit is None else self.limit,
            declared=self.limit is not None,
            prompts=self.prompts,
            sequences=self.sequences,
        )

    @property
    def policy(self) -> Policy:
        return Policy(self.pools)


OVERFLOW, WASTE = Misroute.SHORT_OVERFLOW, Misroute.LONG_WASTE
CUT = Misroute.TRUNCATED

# Cases by name, numbered like the cases in ``find_misroute``.
CASES = {
    "1-status": Case(Outcome(400, 5000, 1), None),
    "1-no-usage": Case(Outcome(200), None),
    "1-zero-prompt": Case(Outcome(200, 0, 5), None),
    "1-negative-prompt": Case(Outcome(200, -5, 5), None),
    "1-a-sum-over-prompts": Case(Outcome(200, 5000, 100), None, prompts=9),
    "1-failed-open": Case(Outcome(200, 300, 5), None, pool=LONG, reason=Reason.FAULT),
    "2-prompt-over-window": Case(Outcome(200, 1001, 0), 1001, OVERFLOW),
    "2-prompt-over-window-no-completion": Case(Outcome(200, 1001), None, OVERFLOW),
    "2-retried-on-a-larger-pool": Case(
        Outcome(200, 1000, 5, attempts=2), 1005, OVERFLOW
    ),
    "2-retried-but-fitted": Case(Outcome(200, 300, 5, attempts=2), 305),
    "2-over-the-largest-window": Case(Outcome(200, 8001, 0), 8001, pool=LONG),
    "3-window-ran-out": Case(Outcome(200, 300, 700, truncated=True), 1000, CUT),
    "3-window-ran-out-before-the-limit": Case(
        Outcome(200, 300, 700, truncated=True), 5300, CUT, limit=5000
    ),
    "3-the-clients-own-limit": Case(
        Outcome(200, 300, 500, truncated=True), 800, limit=500
    ),
    "3-the-limit-filled-the-window": Case(
        Outcome(200, 300, 700, truncated=True), 1000, OVERFLOW, limit=700
    ),
    "3-no-larger-window-there-is": Case(
        Outcome(200, 300, 7700, truncated=True), 8000, pool=LONG
    ),
    "3-truncated-side-by-side": Case(
        Outcome(200, 300, 4 * 200 - 3, truncated=True), 500, sequences=4
    ),
    "4-output-neither-declared-nor-counted": Case(Outcome(200, 300), None, pool=LONG),
    "4-declared-but-not-counted": Case(
        Outcome(200, 300), 310, WASTE, pool=LONG, limit=10
    ),
    "4-nothing-generated": Case(Outcome(200, 300, 0), 300),
    "5-fitted": Case(Outcome(200, 300, 200), 500),
    "5-at-the-threshold": Case(Outcome(200, 700, 100), 800),
    "5-over-the-threshold": Case(Outcome(200, 700, 101), 801, OVERFLOW),
    "5-with-its-declared-limit": Case(Outcome(200, 300, 5), 900, OVERFLOW, limit=600),
    "5-completions-side-by-side": Case(Outcome(200, 300, 4 * 200), 500, sequences=4),
    "5-three-pools": Case(
        Outcome(200, 3500, 5), 3505, OVERFLOW, pool=MIDDLE, pools=THREE
    ),
    "5-more-than-any-pool-holds": Case(
        Outcome(200, 7000, 5), 9000, pool=LONG, limit=2000
    ),
    "6-would-have-fitted": Case(Outcome(200, 300, 5), 305, WASTE, pool=LONG),
    "6-might-have-not": Case(Outcome(200, 300, 5), 900, pool=LONG, limit=600),
    "6-spilled-on-purpose": Case(
        Outcome(200, 300, 5), 305, pool=LONG, reason=Reason.SPILLED
    ),
    "6-three-pools": Case(Outcome(200, 1500, 5), 1505, WASTE, pool=LONG, pools=THREE),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_the_rule(case: Case) -> None:
    assert needed_tokens(case.decision, case.outcome) == case.needed
    assert find_misroute(case.policy, case.decision, case.outcome) is case.misroute


def test_the_router_judges_so(case: Case) -> None:
    router = Router(case.policy, Bounded(TextEma()), TextRatios())
    assert router.learn(case.decision, case.outcome).misroute is case.misroute


def test_a_recording_is_judged_so(case: Case) -> None:
    # The recording also has one line for each pool, so that all pools occur in the
    # recording.
    others = [Observation(Decision(p, Reason.FAULT), Outcome(503)) for p in case.pools]
    lines = [
        Recorded(0.0, observation)
        for observation in (Observation(case.decision, case.outcome), *others)
    ]
    pools = score_recording(lambda: lines, (8192,))["pools"]
    larger = case.misroute in (OVERFLOW, CUT)
    assert pools[case.pool.name]["too_small"] == larger
    assert pools[case.pool.name]["too_large"] == (case.misroute is WASTE)


def held_to_fit_everything(case: Case) -> Decision:
    fields = case.decision
    return Decision(
        fields.pool,
        fields.reason,
        bound_tokens=-fields.output_tokens,
        output_tokens=fields.output_tokens,
        declared=fields.declared,
        prompts=fields.prompts,
        sequences=fields.sequences,
    )


def test_replay_scores_so_at_any_threshold(case: Case) -> None:
    needed = case.needed or 5000
    evaluation = Evaluation((needed - 1, needed))
    evaluation.add(held_to_fit_everything(case), case.outcome)
    report = evaluation.report()
    assert report["scored"] == (case.needed is not None)
    unders = [each["under"] for each in report["misroute_pct"].values()]
    assert unders == [100.0 * (case.needed is not None), 0.0]


def test_threshold_advice_counts_so(case: Case) -> None:
    needed = case.needed or 5000
    counts = BudgetCounts([needed - 1, needed])
    counts.observed(held_to_fit_everything(case), case.outcome)
    rates = counts.under_rates()
    assert rates == ([None, None] if case.needed is None else [1.0, 0.0])


def test_the_demo_judges_so(case: Case) -> None:
    outcome, decision = case.outcome, case.decision
    config = Config(
        pools=tuple(
            PoolConfig(p.name, p.max_model_len, threshold_tokens=p.threshold_tokens)
            for p in case.pools
        )
    )
    reply = Reply(
        "1",
        DemoRequest("/v1/chat/completions", b"{}", "prose"),
        outcome.status,
        outcome.prompt_tokens,
        outcome.completion_tokens,
        outcome.truncated,
        0.1,
    )
    record = Record(
        "1",
        outcome.status,
        case.pool.name,
        "vllm_short",
        outcome.attempts,
        9.0,
        "prose",
        decision.reason,
        300,
        None,
    )
    results = judge(config, [Sent(reply, record, decision)], 1.0, Measured())
    assert results.judged == (case.needed is not None)
    if case.needed is not None:
        assert results.under == (case.misroute in (OVERFLOW, CUT))
        assert results.over == (case.misroute is WASTE)


@pytest.mark.parametrize("output", [1, 500, 501, 699, 700, 701, 2700, 2701, 7000])
@pytest.mark.parametrize("limit", list(Declared))
def test_the_simulated_fleet_judges_so_too(output: int, limit: Declared) -> None:
    """A rule that uses only prompts sends all these requests to the short pool."""
    prompt = 300
    policy = Policy(THREE)
    decision = Case(Outcome(200), None, limit=limit.limit(output)).decision
    outcome = Outcome(200, prompt, output)
    misroute = find_misroute(policy, decision, outcome)

    tiers = [
        Tier(pool.name, SchedulerLimits(4, 64, pool.max_model_len, 999), threshold)
        for pool, threshold in zip(THREE, (800, 3000, 8000), strict=True)
    ]
    strategy = StrategySpec(StrategyName.PROMPT_LENGTH, {"prose": 1.0})
    found = assign(
        Lengths(np.array([prompt]), np.array([output])),
        Inquiry(tiers, strategy, 1, limit, requests=10, learning_lag=1),
        fill=False,
    )

    assert found.under == (misroute is OVERFLOW)
    assert found.over == 0
