"""An explanation has the same numbers, pool and reason as the routing decision."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from extproc.routing.bound import Bounded
from extproc.routing.explanation import (
    Comparison,
    DecisionExplanation,
    Explanation,
    PromptExplanation,
    RequestSize,
    explain,
    explain_failure,
)
from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.ratio import Ema, TextEma, TextRatios
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt, Request
from extproc.routing.risk import NoMargin
from extproc.routing.router import Outcome, Router

SHORT = Pool("short", max_model_len=8192, threshold_tokens=4096)
LONG = Pool("long", max_model_len=65536, threshold_tokens=65536)


def make_router(estimator: Bounded | None = None) -> Router:
    bounded = estimator or Bounded(TextEma(), NoMargin())
    return Router(Policy([SHORT, LONG]), bounded, TextRatios(), hints=["billing"])


def make_request(text: str = "How are you?", **fields: object) -> Request:
    prompt = fields.pop("prompt", Prompt(text.encode()))
    return Request(prompt, body_bytes=len(text) + 40, **fields)  # type: ignore[arg-type]


@given(
    text=st.text(max_size=60),
    copies=st.integers(1, 900),
    max_tokens=st.none() | st.integers(1, 70_000),
    pressed=st.booleans(),
    down=st.booleans(),
)
def test_numbers_are_those_of_the_decision(
    text: str, copies: int, max_tokens: int | None, pressed: bool, down: bool
) -> None:
    router = make_router()
    request = make_request(text * copies, max_tokens=max_tokens)
    loads = {"short": PoolLoad(available=not down, under_pressure=pressed)}
    explanation = explain(router, request, None, loads)
    decision = router.route(request, None, loads)
    assert explanation.decision.pool == decision.pool.name
    assert explanation.decision.reason == decision.reason
    assert explanation.prompt.tokens == decision.prompt_tokens
    assert explanation.prompt.bound_tokens == decision.bound_tokens
    assert explanation.budget.bound_tokens == decision.bound_budget_tokens
    assert explanation.category.name == decision.category
    assert sum(explanation.byte_classes.values()) == len(request.prompt.text)
    assert [pool.name for pool in explanation.pools if pool.chosen] == [
        decision.pool.name
    ]
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation)


@pytest.mark.parametrize(
    ("max_tokens", "reason", "limit", "limit_tokens", "within"),
    [
        (100, "within_threshold", "threshold_tokens", 4096, True),
        (5000, "over_threshold", "threshold_tokens", 4096, False),
        (9000, "over_capacity", "max_model_len", 8192, False),
    ],
)
def test_deciding_comparison(
    max_tokens: int, reason: str, limit: str, limit_tokens: int, within: bool
) -> None:
    explanation = explain(make_router(), make_request(max_tokens=max_tokens))
    decision = explanation.decision
    assert decision.reason == reason
    by = decision.decided_by
    assert by is not None
    assert (by.pool, by.limit, by.limit_tokens, by.within) == (
        "short",
        limit,
        limit_tokens,
        within,
    )
    assert by.budget_tokens == explanation.budget.bound_tokens


def test_load_decides_when_the_pool_of_choice_is_under_pressure() -> None:
    loads = {"short": PoolLoad(under_pressure=True)}
    explanation = explain(make_router(), make_request(max_tokens=10), None, loads)
    assert explanation.decision.pool == "long"
    assert explanation.decision.decided_by == Comparison("short", "load")
    assert explanation.pools[0].under_pressure


def test_one_pool_leaves_nothing_to_compare() -> None:
    router = Router(Policy([LONG]), Bounded(TextEma(), NoMargin()), TextRatios())
    assert explain(router, make_request()).decision.decided_by is None


@pytest.mark.parametrize(
    ("hint", "name", "source", "accepted"),
    [
        (None, "prose", "text", False),
        ("billing", "billing", "hint", True),
        ("code", "code", "hint", True),
        ("made-up", "prose", "text", False),
    ],
)
def test_category_says_where_it_came_from(
    hint: str | None, name: str, source: str, accepted: bool
) -> None:
    category = explain(make_router(), make_request(), hint).category
    assert category.name == name
    assert category.source == source
    assert category.hint_accepted is accepted
    assert category.of_text == "prose"


def test_category_of_tools_and_of_nothing() -> None:
    tools = make_request(prompt=Prompt(b"hi", tools_text=b"[{}, {}]", tools=2))
    empty = make_request(prompt=Prompt(b""))
    assert explain(make_router(), tools).category.source == "tools"
    assert explain(make_router(), empty).category.source == "nothing to read"


def test_token_ids_need_no_estimator() -> None:
    explanation = explain(make_router(), make_request(prompt=Prompt(b"", token_ids=77)))
    assert explanation.prompt.estimator is None
    assert explanation.prompt.tokens == explanation.prompt.token_ids == 77
    assert not explanation.prompt.learned_from


def test_media_are_counted_apart() -> None:
    explanation = explain(
        make_router(), make_request(prompt=Prompt(b"what?", images=2))
    )
    assert explanation.prompt.media_tokens == 2048
    assert explanation.prompt.tokens > 2048


def made_of(router: Router, request: Request) -> Any:
    found = explain(router, request).prompt.made_of
    assert found is not UNSET
    return found


@pytest.mark.parametrize("estimator", [Ema(), TextEma()], ids=lambda e: e.name)
def test_estimators_name_coefficients_that_give_the_estimate(
    estimator: Ema | TextEma,
) -> None:
    router = make_router(Bounded(estimator, NoMargin()))
    request = make_request("All of it, word for word. " * 40)
    assert made_of(router, request)["learned"] is False
    for _ in range(20):
        router.learn(router.route(request), Outcome(200, 210, 1))
    explanation = explain(router, request).prompt
    numbers = made_of(router, request)
    assert numbers["learned"] is True
    if estimator.name == "ema":
        expected = request.body_bytes / numbers["divisor"]
    else:
        text = len(request.prompt.text) / numbers["bytes_per_token"]
        expected = numbers["template_tokens"] + text
    assert explanation.tokens == pytest.approx(expected, abs=1)


def test_the_text_estimator_names_its_heaviest_terms() -> None:
    router = make_router(Bounded(TextEstimator()))
    request = make_request("All of it. ")
    assert made_of(router, request)["learned"] is False
    router.learn(router.route(request), Outcome(200, 21, 1))
    prompt = explain(router, request).prompt
    numbers = made_of(router, request)
    assert numbers["learned"] is True
    assert numbers["observed"] == 1
    terms = numbers["terms"]
    assert "template" in terms
    assert len(terms) <= 12
    for term in terms.values():
        assert term["tokens"] == pytest.approx(term["count"] * term["tokens_each"])
    # A text this short has few enough terms to show all of them, so the shown terms add
    # up to the total.
    assert sum(t["tokens"] for t in terms.values()) == pytest.approx(
        prompt.tokens, abs=0.6
    )
    assert prompt.bound_tokens == pytest.approx(
        prompt.tokens * numbers["factor"], abs=2
    )
    assert msgspec.json.decode(msgspec.json.encode(prompt), type=PromptExplanation)


def test_explaining_teaches_nothing() -> None:
    router = make_router()
    before = explain(router, make_request("Something to read."))
    assert explain(router, make_request("Something to read.")) == before
    assert router.ratios.all() == {}


def test_what_was_not_read_has_a_reason_and_no_budget() -> None:
    router = make_router()
    explanation = explain_failure(router, router.fail_open(Reason.UNPARSABLE, 12))
    assert explanation.request == RequestSize(12)
    assert explanation.decision == DecisionExplanation("long", "unparsable", None)
