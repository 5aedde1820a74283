"""Exchanges in flight: open exchanges, and decision tokens that clients return."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.server.services.in_flight import InFlight


def in_flight(limit: int = 100) -> tuple[InFlight, list[str]]:
    landed: list[str] = []
    return InFlight(landed.append, limit), landed


def test_an_end_is_told_once() -> None:
    known, landed = in_flight()
    known.began(b"a", "short")
    known.ended(b"a")
    known.ended(b"a")
    assert (landed, len(known)) == (["short"], 0)


def test_alike_requests_are_counted_each() -> None:
    known, landed = in_flight()
    for _ in range(3):
        known.began(b"a", "short")
    for _ in range(5):
        known.ended(b"a")
    assert landed == ["short"] * 3


def test_an_end_that_nobody_waits_for_is_nothing() -> None:
    known, landed = in_flight()
    known.ended(b"of another process")
    known.ended(None)
    assert landed == []


def test_the_oldest_are_forgotten_first() -> None:
    known, landed = in_flight(limit=2)
    for key in ("first", "second", "third"):
        known.began(key, f"pool of the {key}")
    for key in ("first", "second", "third"):
        known.ended(key)
    assert landed == ["pool of the second", "pool of the third"]


KEYS = st.integers(0, 8)


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=200))
def test_what_is_remembered_is_bounded_and_adds_up(steps: list[Any]) -> None:
    known, landed = in_flight(limit=5)
    began = 0
    for begins, key in steps:
        if begins:
            known.began(key, "short")
            began += 1
        else:
            known.ended(key)
        assert len(known) <= 5
    forgotten = began - len(landed) - len(known)
    assert 0 <= forgotten <= max(0, began - 5)
