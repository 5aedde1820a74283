"""Quantiles of a stream are accurate to half a percent."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.fleet.histogram import Histogram


def test_quantiles_are_within_half_a_percent() -> None:
    values = np.random.default_rng(1).lognormal(0, 2, 50_000)
    histogram = Histogram()
    histogram.add(values)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(share) == pytest.approx(
            float(np.quantile(values, share)), rel=0.007
        )
    assert histogram.mean == pytest.approx(float(values.mean()))


@given(
    st.lists(st.floats(0, 1e6), max_size=40), st.lists(st.floats(0, 1e6), max_size=40)
)
def test_merging_is_adding(left: list[float], right: list[float]) -> None:
    merged, whole, other = Histogram(), Histogram(), Histogram()
    merged.add(left)
    other.add(right)
    merged.merge(other)
    whole.add(left + right)
    assert list(merged.cumulative()) == list(whole.cumulative())
    assert merged.count == whole.count
    assert merged.total == pytest.approx(whole.total)


@given(
    st.lists(st.lists(st.floats(0, 1e6), max_size=20), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
)
def test_parts_above_a_quantile_add_up(parts: list[list[float]], share: float) -> None:
    whole, histograms = Histogram(), []
    for part in parts:
        histogram = Histogram()
        histogram.add(part)
        histograms.append(histogram)
        whole.merge(histogram)
    above = sum(histogram.above(whole, share) for histogram in histograms)
    assert above == pytest.approx((1 - share) * whole.count)


def test_of_nothing_there_is_no_quantile() -> None:
    empty = Histogram()
    assert math.isnan(empty.quantile(0.5))
    assert math.isnan(empty.mean)


def test_zeros_are_zero() -> None:
    histogram = Histogram()
    histogram.add([0.0, 0.0, 5.0])
    assert histogram.quantile(0.5) == 0
    assert list(histogram.cumulative())[-1][1] == 1
