"""Counts read after many observations equal counts updated at each observation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.decayed_counts import DecayedCounts

BINS, KEEP = 5, 0.99


@given(
    st.lists(st.tuples(st.integers(0, BINS - 1), st.booleans()), max_size=60),
    st.integers(1, 20),
)
def test_reading_late_changes_nothing(
    observations: list[tuple[int, bool]], times: int
) -> None:
    counts, expected = DecayedCounts(BINS, KEEP), np.zeros(BINS)

    for place, read in observations * times:
        counts.add(place)
        expected *= KEEP
        expected[place] += 1.0
        if read:
            assert counts.counts == pytest.approx(expected, rel=1e-9, abs=1e-12)

    assert counts.counts == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert counts.observations == len(observations) * times


def test_counts_that_were_read_do_not_change() -> None:
    counts = DecayedCounts(BINS, KEEP)
    counts.add(1)
    before = counts.counts
    counts.add(1)

    assert before.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert counts.counts[1] == pytest.approx(1.0 + KEEP)


def test_replaced_counts_forget_what_was_not_added_yet() -> None:
    counts = DecayedCounts(BINS, KEEP)
    counts.add(1)
    counts.replace(np.ones(BINS), 7)

    assert (counts.counts.tolist(), counts.observations) == ([1.0] * BINS, 7)
