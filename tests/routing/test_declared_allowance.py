"""The part of a declared output limit that the router reserves."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.declared_allowance import DeclaredAllowance
from extproc.routing.mergeable import DecayedSums, merge, snapshot


def feed(
    allowance: DeclaredAllowance,
    median: float,
    count: int,
    *,
    model: str = "m",
    category: str = "prose",
    limit: int = 32_000,
    seed: int = 1,
) -> list[bool]:
    """Reserve tokens for answers of log-normal length, and learn each answer's length.

    Return for each answer whether it exceeded its reserve.
    """
    rng = random.Random(seed)
    exceeded = []
    for _ in range(count):
        length = max(1, min(limit, round(median * rng.lognormvariate(0.0, 0.9))))
        reserved = allowance.reserve(model, category, limit)
        exceeded.append(length > reserved)
        allowance.observe(
            model,
            category,
            limit,
            length,
            truncated=length == limit,
            reserved_tokens=reserved,
        )
    return exceeded


def test_a_limit_is_believed_until_enough_answers_are_known() -> None:
    allowance = DeclaredAllowance(0.01)
    feed(allowance, 300, 90)
    assert allowance.reserve("m", "prose", 32_000) == 32_000
    feed(allowance, 300, 60)
    assert allowance.reserve("m", "prose", 32_000) < 8_000


@pytest.mark.parametrize("risk", [0.005, 0.02, 0.1])
def test_the_stated_share_exceeds_what_is_reserved(risk: float) -> None:
    allowance = DeclaredAllowance(risk)
    exceeded = feed(allowance, 300, 6000)
    share = sum(exceeded[1000:]) / 5000
    assert 0.4 * risk < share < 1.4 * risk
    assert allowance.achieved() == pytest.approx(risk, rel=0.7)


def test_limits_models_and_categories_are_told_apart() -> None:
    allowance = DeclaredAllowance(0.01)
    feed(allowance, 200, 800, limit=32_000)
    feed(allowance, 4000, 800, limit=64_000)
    feed(allowance, 4000, 800, category="code")
    assert allowance.reserve("m", "prose", 32_000) < 4_000
    assert allowance.reserve("m", "prose", 64_000) > 10_000
    assert allowance.reserve("m", "code", 32_000) > 10_000
    # An unknown model may be a reasoning model, so the full limit is reserved.
    assert allowance.reserve("other", "prose", 32_000) == 32_000


def test_a_limit_that_answers_reach_is_reserved() -> None:
    allowance = DeclaredAllowance(0.01)
    for _ in range(500):
        allowance.observe("m", "prose", 100, 100, truncated=True, reserved_tokens=100)
    assert allowance.reserve("m", "prose", 100) == 100


@given(st.integers(1, 1 << 31), st.lists(st.integers(1, 1 << 20), max_size=300))
def test_is_never_more_than_the_limit(limit: int, lengths: list[int]) -> None:
    allowance = DeclaredAllowance(0.1)
    for length in lengths:
        allowance.observe(
            "m", "prose", limit, length, truncated=False, reserved_tokens=limit
        )
    assert 1 <= allowance.reserve("m", "prose", limit) <= limit


def test_at_no_risk_all_that_is_declared_is_reserved() -> None:
    allowance = DeclaredAllowance(0.0)
    feed(allowance, 300, 500)
    assert allowance.reserve("m", "prose", 32_000) == 32_000
    assert allowance.achieved() is None


def test_limits_are_believed_where_the_engine_refuses_them() -> None:
    allowance = DeclaredAllowance(0.01)
    feed(allowance, 300, 500)
    for refused in (True, False, True):
        allowance.relied("m", refused=refused)
    assert allowance.reserve("m", "prose", 32_000) < 8_000
    for _ in range(8):
        allowance.relied("m", refused=True)
    assert allowance.reserve("m", "prose", 32_000) == 32_000


def test_what_two_processes_learned_apart_adds_up() -> None:
    one, two, both = (DeclaredAllowance(0.02) for _ in range(3))
    feed(one, 300, 200, seed=1)
    feed(two, 300, 200, seed=2)
    both.restore(merge({}, snapshot(one), snapshot(two)))
    reserved = both.reserve("m", "prose", 32_000)
    assert 1_000 < reserved < 8_000
    assert snapshot(both)["all:m"].observations == 400


def test_leaves_what_is_not_its_own() -> None:
    allowance = DeclaredAllowance(0.02)
    feed(allowance, 300, 200)
    before = allowance.reserve("m", "prose", 32_000)
    odd = DecayedSums(0.9, 5, np.ones(7))
    allowance.restore(dict.fromkeys(["?", "rate:m", *snapshot(allowance)], odd))
    assert allowance.reserve("m", "prose", 32_000) == before


@pytest.mark.parametrize("risk", [-0.1, 0.5, 2.0])
def test_refuses_a_risk_out_of_range(risk: float) -> None:
    with pytest.raises(ValueError, match="risk"):
        DeclaredAllowance(risk)
