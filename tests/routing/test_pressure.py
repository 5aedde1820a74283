import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.policy import Policy, Pool, PoolLoad, Reason
from extproc.routing.pressure import EndpointLoad, PoolPressure, PressureLimits

LIMITS = PressureLimits(waiting_requests=10, kv_cache_usage=0.9, relief=0.5)


def queue(waiting, usage=0.0):
    return EndpointLoad(waiting, 1.0, usage)


def after(*measurements):
    pressure = PoolPressure(LIMITS)
    for loads in measurements:
        pressure.measured(loads)
    return pressure


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (queue(9.9), False),
        (queue(10), True),
        (queue(0, usage=0.89), False),
        (queue(0, usage=0.9), True),
    ],
)
def test_either_limit_begins_pressure(load, expected):
    assert after([load]).under_pressure is expected


def test_pressure_ends_below_where_it_began():
    high, between, low = [queue(10)], [queue(6)], [queue(5)]
    assert after(high, between).under_pressure
    assert not after(high, between, low).under_pressure
    assert not after(between).under_pressure
    assert after(high, [queue(0, usage=0.5)]).under_pressure


def test_the_mean_of_the_endpoints_counts():
    assert not after([queue(18), queue(0)]).under_pressure
    assert after([queue(18), queue(2)]).under_pressure


def test_no_measurement_is_no_pressure():
    pressure = after([queue(10)], [])
    assert not pressure.under_pressure
    assert pressure.waiting is None
    pressure.sent()
    assert not pressure.under_pressure


def test_what_is_sent_to_a_queue_makes_it_longer_until_the_next_measurement():
    pressure = after([queue(8), queue(8)])
    for _ in range(3):
        pressure.sent()
    assert not pressure.under_pressure
    pressure.sent()
    assert pressure.under_pressure
    pressure.measured([queue(4), queue(4)])
    assert not pressure.under_pressure


def test_what_has_ended_makes_the_queue_shorter():
    pressure = after([queue(8), queue(8)])
    for _ in range(4):
        pressure.sent()
    assert pressure.under_pressure
    for _ in range(9):
        pressure.ended()
    assert pressure.under_pressure  # mean 5.5: still above the lower limit
    pressure.ended()
    assert not pressure.under_pressure


def test_requests_count_from_when_each_endpoint_was_measured():
    pressure = PoolPressure(LIMITS)
    for _ in range(6):
        pressure.sent()
    # The first report precedes the six requests, and the second report includes them.
    pressure.measured([queue(8), queue(8)], [0, 6])
    assert not pressure.under_pressure  # 8 + 3 / 2
    pressure.sent()
    assert pressure.under_pressure


def test_what_is_sent_to_a_pool_without_a_queue_is_none():
    pressure = after([queue(0)])
    for _ in range(1000):
        pressure.sent()
    assert not pressure.under_pressure


POOLS = [Pool("s", 100, 80), Pool("m", 1000, 1000), Pool("l", 5000, 5000)]
loads = st.dictionaries(
    st.sampled_from(["s", "m", "l"]), st.builds(PoolLoad, st.booleans(), st.booleans())
)


@given(st.integers(1, 6000), loads)
def test_a_pool_that_is_down_gets_nothing_while_another_can_hold_it(budget, loads):
    chosen = Policy(POOLS).choose(budget, loads)
    usable = [
        pool.name
        for pool in POOLS
        if loads.get(pool.name, PoolLoad()).available and budget <= pool.max_model_len
    ]
    if usable:
        assert chosen.pool.name in usable
    if chosen.reason is Reason.SPILLED:
        assert budget <= chosen.pool.max_model_len


@given(loads)
def test_without_a_budget_the_largest_pool_that_is_up_is_chosen(loads):
    up = [p for p in POOLS if loads.get(p.name, PoolLoad()).available]
    expected = up[-1] if up else POOLS[-1]
    assert Policy(POOLS).fallback(loads) is expected
