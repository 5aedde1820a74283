"""Threshold advice: shares, savings and risk equal counts, and the best is first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.advice import (
    MIN_REQUESTS,
    BudgetCounts,
    advise,
    candidate_thresholds,
    step_gain,
)
from extproc.routing.policy import Policy, Pool

POLICY = Policy([Pool("short", 8192, 8192), Pool("long", 65536, 65536)])
THRESHOLDS = [1024, 2048, 4096, 8192]


def test_candidates_stay_below_the_largest_window() -> None:
    assert candidate_thresholds(8192) == [1024, 1536, 2048, 3072, 4096, 6144]
    assert candidate_thresholds(1000) == []


def test_gain_of_a_step_is_that_of_the_papers_constants() -> None:
    # (128 / 91.2 ms) / (16 / 18.4 ms)
    assert step_gain(8192, 65536) == pytest.approx(1.614, abs=1e-3)
    assert step_gain(65536, 65536) == 1
    assert step_gain(1024, 65536) < 64


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=300))
def test_shares_are_those_of_the_budgets(budgets: list[int]) -> None:
    counts = BudgetCounts(THRESHOLDS, memory=1e9)
    for budget in budgets:
        counts.add(budget)
    expected = [sum(b <= t for b in budgets) / len(budgets) for t in THRESHOLDS]
    assert counts.within() == pytest.approx(expected, abs=1e-6)
    assert sum(counts.shares()) == pytest.approx(1)
    assert counts.requests == pytest.approx(len(budgets), rel=1e-5)


@given(
    st.lists(
        st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
        min_size=1,
        max_size=200,
    )
)
def test_under_rates_are_those_of_the_needs(pairs: list[tuple[int, int]]) -> None:
    counts = BudgetCounts(THRESHOLDS, memory=1e9)
    for budget, needed in pairs:
        counts.add(budget)
        counts.observe(budget, needed)
    for threshold, rate in zip(THRESHOLDS, counts.under_rates(), strict=True):
        held = [needed for budget, needed in pairs if budget <= threshold]
        if held:
            expected = sum(needed > threshold for needed in held) / len(held)
            assert rate == pytest.approx(expected, abs=1e-6)
        else:
            assert rate is None


def test_counts_fade() -> None:
    counts = BudgetCounts(THRESHOLDS, memory=100)
    for _ in range(500):
        counts.add(8000)
    for _ in range(500):
        counts.add(500)
    assert counts.within()[0] == pytest.approx(1, abs=0.01)
    assert counts.requests == pytest.approx(101, rel=0.02)


def test_counting_never_overflows() -> None:
    counts = BudgetCounts(THRESHOLDS, memory=2)
    for _ in range(2000):
        counts.add(500)
        counts.observe(500, 3000)
    assert counts.requests == pytest.approx(3, rel=0.01)
    assert counts.under_rates()[:2] == pytest.approx([1, 1])
    assert counts.under_rates()[2] == pytest.approx(0, abs=1e-9)


def count_requests(sizes: dict[int, int]) -> BudgetCounts:
    counts = BudgetCounts(sorted({*candidate_thresholds(65536), 8192}), memory=1e9)
    for budget, number in sizes.items():
        for _ in range(number):
            counts.add(budget)
    return counts


def test_no_advice_from_a_handful_of_requests() -> None:
    counts = count_requests({500: MIN_REQUESTS - 1})
    assert advise(counts, POLICY) is None


@pytest.mark.parametrize(
    ("sizes", "best"),
    [
        ({500: 990, 40_000: 10}, 1024),
        ({500: 300, 5000: 600, 40_000: 100}, 6144),
        ({500: 50, 30_000: 950}, 32768),
    ],
    ids=["all short", "mostly medium", "mostly long"],
)
def test_the_threshold_follows_the_traffic(sizes: dict[int, int], best: int) -> None:
    advice = advise(count_requests(sizes), POLICY)
    assert advice is not None
    assert advice.best.threshold_tokens == best
    assert advice.current.threshold_tokens == 8192
    assert advice.best.saving >= advice.current.saving
    for prospect in (advice.best, advice.current):
        assert 0 <= prospect.saving <= prospect.saving_at_most <= 1


def test_the_formula_is_the_papers() -> None:
    advice = advise(count_requests({5000: 800, 40_000: 200}), POLICY)
    assert advice is not None
    current = advice.current
    assert current.short_fraction == pytest.approx(0.8)
    assert current.saving_at_most == pytest.approx(0.8 * (1 - 1 / 8))
    assert current.saving == pytest.approx(0.8 * (1 - 1 / 1.614), abs=1e-3)
    assert current.under_rate is None
