"""When the router requests bodies, if its gateway does not pass on every body."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.events import (
    AskRequestBody,
    BodyMode,
    RequestBody,
    ResponseHeaders,
)
from extproc.exchange.gateway_limit import (
    ARRIVALS,
    FIRST_PAUSE_S,
    FLOOR_BYTES,
    LONGEST_PAUSE_S,
    LOSSES,
    SMALL_ARRIVALS,
    GatewayLimit,
)
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.policy import Reason

from .messages import LONG, chat, exchange, request, routed, send

MIB = 1 << 20
KIB = 1 << 10


def gateway(
    limit: GatewayLimit, holds: int, length: int | None, size: int | None = None
) -> bool | None:
    """Send a body through a gateway with a limit; return whether the body arrived.

    Return None if the router does not request the body.
    """
    size = length if size is None else size
    assert size is not None
    if not limit.requests(length):
        return None
    if size > holds:
        limit.lost(length)
        return False
    limit.arrived(length, size)
    return True


def limited(holds: int = 32 * KIB, size: int = 100 * KIB) -> GatewayLimit:
    limit = GatewayLimit(MIB)
    while gateway(limit, holds, size) is not None:
        pass
    return limit


@given(
    st.lists(st.tuples(st.integers(0, MIB), st.booleans()), min_size=100, max_size=300),
    st.integers(FLOOR_BYTES, 512 * KIB),
)
def test_at_most_three_are_lost_while_none_of_their_size_comes(
    bodies: list[tuple[int, bool]], holds: int
) -> None:
    limit = GatewayLimit(MIB)

    seen = [
        gateway(limit, holds, size if known else None, size) for size, known in bodies
    ]

    assert seen.count(False) <= LOSSES + sum(
        # If small bodies of unknown length arrive between two lost bodies, the count of
        # losses may fall by one.
        seen[:n].count(True) >= ARRIVALS
        for n, was in enumerate(seen)
        if was is False
    )
    assert limit.limit_bytes is None or limit.limit_bytes <= holds


@pytest.mark.parametrize("known", [True, False])
def test_what_has_come_is_requested_still(known: bool) -> None:
    limit = GatewayLimit(MIB)
    for size in (20_000, 100_000, 30_000, 100_000, 90_000):
        gateway(limit, 64 * KIB, size if known else None, size)

    assert limit.limit_bytes == 30_000
    assert limit.requests(30_000)
    assert not limit.requests(30_001)
    assert not limit.requests(None)


def test_what_came_says_nothing_of_a_gateway_that_has_changed_since() -> None:
    limit = GatewayLimit(MIB)
    sizes = [40_000, 80_000, 160_000, 320_000, 400_000]
    for size in sizes:
        gateway(limit, MIB, size)

    seen = [gateway(limit, 32 * KIB, size) for size in reversed(sizes * 10)]

    assert seen.count(False) == LOSSES + 1
    assert limit.limit_bytes == FLOOR_BYTES


def test_small_bodies_that_are_lost_are_of_clients_that_went_away() -> None:
    limit = GatewayLimit(MIB)
    for _ in range(100):
        limit.lost(FLOOR_BYTES)

    assert limit.limit_bytes is None


@pytest.mark.parametrize("length", [200_000, None])
def test_few_clients_that_go_away_among_many_bodies_teach_nothing(
    length: int | None,
) -> None:
    limit = GatewayLimit(MIB)
    for _ in range(20):
        limit.lost(length)
        for _ in range(ARRIVALS):
            gateway(limit, MIB, length, 200_000)

    assert limit.limit_bytes is None


def test_small_bodies_without_a_length_forgive_more_slowly() -> None:
    limit = GatewayLimit(MIB)
    for _ in range(20):
        limit.lost(None)
        for _ in range(SMALL_ARRIVALS):
            gateway(limit, MIB, None, 100)

    assert limit.limit_bytes is None


def test_clients_of_two_protocols_with_two_limits_do_not_hide_the_smaller() -> None:
    limit, lost = GatewayLimit(MIB), 0
    for _ in range(1000):
        if limit.requests(200_000):
            limit.arrived(200_000, 200_000)  # HTTP/1.1
        if limit.requests(200_000):
            limit.lost(200_000)  # HTTP/2
            lost += 1

    assert lost == LOSSES
    assert limit.limit_bytes == FLOOR_BYTES


def test_a_loss_below_the_limit_lowers_it_at_once() -> None:
    limit = GatewayLimit(MIB)
    for size in (60_000, 100_000, 100_000, 100_000):
        gateway(limit, 64 * KIB, size)
    assert limit.limit_bytes == 60_000

    assert gateway(limit, 32 * KIB, 50_000) is False

    assert limit.limit_bytes == FLOOR_BYTES


def test_one_attempt_is_made_and_the_next_pause_is_longer() -> None:
    limit = limited()
    pauses = []
    for _ in range(20):
        pauses.append(limit.pause_s)
        limit.try_again()
        seen = [gateway(limit, 32 * KIB, 100 * KIB) for _ in range(5)]
        assert seen == [False, None, None, None, None]

    assert pauses[:4] == [FIRST_PAUSE_S] * 2 + [2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize("length", [100 * KIB, None])
def test_a_gateway_that_was_mended_has_its_limit_lifted(length: int | None) -> None:
    limit = GatewayLimit(MIB)
    for _ in range(LOSSES):
        gateway(limit, 32 * KIB, length, 100 * KIB)
    assert not limit.requests(length)

    limit.try_again()
    came = [gateway(limit, MIB, length, 100 * KIB) for _ in range(ARRIVALS)]

    assert came == [True] * ARRIVALS
    assert limit.limit_bytes is None
    assert limit.requests(MIB)


def test_attempts_that_succeed_raise_the_limit_to_what_came() -> None:
    limit = limited(holds=64 * KIB, size=MIB)
    limit.try_again()
    for size in (20 * KIB, 40 * KIB, 60 * KIB):
        assert gateway(limit, 64 * KIB, size)

    assert limit.limit_bytes == 60 * KIB


# The exchange.


def big(machine: Exchange, length: int | None = 100_000) -> None:
    step = send(machine, request(length, mode=BodyMode.NONE))
    assert step.reply == AskRequestBody()


def cap(machine: Exchange) -> GatewayLimit:
    return machine._decider.gateway_limit


def refuse(machine: Exchange) -> None:
    step = send(machine, ResponseHeaders({":status": "413"}))
    assert step.refused
    assert step.end


@pytest.mark.parametrize("lose", [refuse, Exchange.lose_body])
@pytest.mark.parametrize("length", [100_000, None])
def test_an_exchange_whose_body_is_lost_teaches_those_after_it(
    lose: Callable[[Exchange], None], length: int | None
) -> None:
    first = exchange(settings=ExchangeSettings(MIB))
    decider = first._decider
    for machine in (first, Exchange(decider), Exchange(decider)):
        big(machine, length)
        assert machine.awaits_body
        lose(machine)

    step = send(Exchange(decider), request(length, mode=BodyMode.NONE))

    assert (routed(step).pool, routed(step).reason) == (LONG, Reason.GATEWAY_LIMIT)
    assert routed(step).body_bytes == (length or 0)
    assert step.end


def test_other_answers_in_place_of_a_body_teach_nothing() -> None:
    first = exchange(settings=ExchangeSettings(MIB))
    for status in ("408", "200", "503", "413x"):
        machine = Exchange(first._decider)
        big(machine)
        assert not send(machine, ResponseHeaders({":status": status})).refused

    assert cap(first).limit_bytes is None


def test_a_413_of_a_server_is_none_of_the_gateway() -> None:
    machine = exchange(settings=ExchangeSettings(MIB), watch=True)
    big(machine)
    send(machine, RequestBody(chat(), True))
    assert not machine.awaits_body

    assert not send(machine, ResponseHeaders({":status": "413"})).refused


def test_a_body_in_full_duplex_is_not_awaited() -> None:
    machine = exchange()
    send(machine, request(100, mode=BodyMode.FULL_DUPLEX_STREAMED))

    assert not machine.awaits_body
