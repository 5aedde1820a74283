import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.routing.policy import Choice, Policy, Pool, PoolLoad, Reason

SHORT = Pool("short", 8192, 6000)
MIDDLE = Pool("middle", 32768, 32768)
LONG = Pool("long", 131072, 131072)
TWO = Policy([SHORT, LONG])
THREE = Policy([SHORT, MIDDLE, LONG])

BUSY = PoolLoad(under_pressure=True)
DOWN = PoolLoad(available=False)


@pytest.mark.parametrize(
    ("policy", "budget", "pool", "reason"),
    [
        (TWO, 0, SHORT, Reason.WITHIN_THRESHOLD),
        (TWO, 6000, SHORT, Reason.WITHIN_THRESHOLD),
        (TWO, 6001, LONG, Reason.OVER_THRESHOLD),
        (TWO, 8192, LONG, Reason.OVER_THRESHOLD),
        (TWO, 8193, LONG, Reason.OVER_CAPACITY),
        (TWO, 10**9, LONG, Reason.OVER_CAPACITY),
        (THREE, 6000, SHORT, Reason.WITHIN_THRESHOLD),
        (THREE, 6001, MIDDLE, Reason.WITHIN_THRESHOLD),
        (THREE, 32768, MIDDLE, Reason.WITHIN_THRESHOLD),
        (THREE, 32769, LONG, Reason.OVER_CAPACITY),
        (Policy([LONG]), 5, LONG, Reason.WITHIN_THRESHOLD),
        (Policy([LONG]), 10**9, LONG, Reason.WITHIN_THRESHOLD),
        (Policy([Pool("s", 100, 500), LONG]), 200, LONG, Reason.OVER_CAPACITY),
    ],
)
def test_the_smallest_pool_that_holds_the_budget(
    policy: Policy, budget: int, pool: Pool, reason: Reason
) -> None:
    assert policy.choose(budget) == Choice(pool, reason)
    assert policy.choose(budget, {}) == Choice(pool, reason)
    assert policy.choose(budget, {"elsewhere": DOWN}) == Choice(pool, reason)


@pytest.mark.parametrize(
    ("policy", "budget", "loads", "pool", "reason"),
    [
        pytest.param(TWO, 9, {"short": BUSY}, LONG, Reason.SPILLED, id="spills-upward"),
        pytest.param(TWO, 9, {"short": DOWN}, LONG, Reason.SPILLED, id="down"),
        pytest.param(
            TWO,
            9,
            {"short": BUSY, "long": BUSY},
            SHORT,
            Reason.WITHIN_THRESHOLD,
            id="not-onto-a-busy-one",
        ),
        pytest.param(
            TWO,
            9,
            {"short": DOWN, "long": BUSY},
            LONG,
            Reason.SPILLED,
            id="a-busy-one-is-better-than-none",
        ),
        pytest.param(
            TWO,
            9,
            {"short": DOWN, "long": DOWN},
            SHORT,
            Reason.WITHIN_THRESHOLD,
            id="none-is-left",
        ),
        pytest.param(
            TWO,
            7000,
            {"long": DOWN},
            SHORT,
            Reason.SPILLED,
            id="downward-if-it-fits-the-window",
        ),
        pytest.param(
            TWO,
            9000,
            {"long": DOWN},
            LONG,
            Reason.OVER_CAPACITY,
            id="not-downward-if-it-does-not",
        ),
        pytest.param(
            TWO,
            7000,
            {"long": BUSY},
            LONG,
            Reason.OVER_THRESHOLD,
            id="not-downward-for-load",
        ),
        pytest.param(
            THREE,
            9,
            {"short": BUSY, "middle": BUSY},
            LONG,
            Reason.SPILLED,
            id="over-a-busy-one",
        ),
        pytest.param(
            THREE,
            9,
            {"short": BUSY, "middle": DOWN},
            LONG,
            Reason.SPILLED,
            id="over-one-that-is-down",
        ),
        pytest.param(
            THREE, 9, {"short": BUSY}, MIDDLE, Reason.SPILLED, id="to-the-next"
        ),
        pytest.param(
            THREE,
            9000,
            {"middle": DOWN, "long": DOWN},
            MIDDLE,
            Reason.WITHIN_THRESHOLD,
            id="none-that-holds-it-is-left",
        ),
    ],
)
def test_load(
    policy: Policy,
    budget: int,
    loads: dict[str, PoolLoad],
    pool: Pool,
    reason: Reason,
) -> None:
    assert policy.choose(budget, loads) == Choice(pool, reason)


LOADS = st.builds(PoolLoad, st.booleans(), st.booleans())
POOLS = st.lists(
    st.tuples(st.integers(1, 10**6), st.floats(0.1, 1.0)),
    min_size=1,
    max_size=5,
    unique_by=lambda pool: pool[0],
).map(
    lambda pools: [
        Pool(f"p{i}", length, max(1, int(length * share)))
        for i, (length, share) in enumerate(sorted(pools))
    ]
)


@settings(max_examples=50)
@given(pools=POOLS, budget=st.integers(0, 2 * 10**6), data=st.data())
def test_a_chosen_pool_holds_the_budget_unless_it_is_the_last(
    pools: list[Pool], budget: int, data: st.DataObject
) -> None:
    names = [pool.name for pool in pools]
    loads = data.draw(st.dictionaries(st.sampled_from(names), LOADS))

    choice = Policy(pools).choose(budget, loads)

    assert budget <= choice.pool.max_model_len or choice.pool == pools[-1]
    assert not choice.reason.failed_open


@settings(max_examples=50)
@given(pools=POOLS, budget=st.integers(0, 2 * 10**6), data=st.data())
def test_a_healthy_idle_pool_of_choice_is_kept(
    pools: list[Pool], budget: int, data: st.DataObject
) -> None:
    policy = Policy(pools)
    first = policy.choose(budget)
    others = [pool.name for pool in pools if pool != first.pool]
    loads = data.draw(st.dictionaries(st.sampled_from(others or ["x"]), LOADS))

    assert policy.choose(budget, loads) == first


@settings(max_examples=50)
@given(
    pools=POOLS,
    budgets=st.tuples(st.integers(0, 2 * 10**6), st.integers(0, 2 * 10**6)).map(sorted),
)
def test_a_larger_budget_never_goes_to_a_smaller_pool(
    pools: list[Pool], budgets: list[int]
) -> None:
    policy = Policy(pools)
    small, large = (policy.choose(budget).pool for budget in budgets)

    assert small.max_model_len <= large.max_model_len


@pytest.mark.parametrize("pools", [[], [LONG, SHORT], [SHORT, Pool("b", 8192, 1)]])
def test_pools_out_of_order_are_refused(pools: list[Pool]) -> None:
    with pytest.raises(ValueError, match="expected increasing"):
        Policy(pools)


def test_pools_by_name_and_the_default() -> None:
    assert THREE.default == LONG
    assert THREE.pool("middle") == MIDDLE
    assert THREE.pool("none") is None


def test_reasons_that_made_no_estimate() -> None:
    assert {reason for reason in Reason if reason.failed_open} == {
        Reason.UNPARSABLE,
        Reason.STORED,
        Reason.TOO_LARGE,
        Reason.LENGTH_UNKNOWN,
        Reason.GATEWAY_LIMIT,
        Reason.UNDECODABLE,
        Reason.FAULT,
    }
