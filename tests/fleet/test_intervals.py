"""Intervals of means and P99s from the batches of a run."""

import math

import pytest

from extproc.fleet.intervals import batch_half_width, half_width
from extproc.fleet.results import PoolResult, Result


def test_half_widths_are_students() -> None:
    """Three values of mean 2 and standard deviation 1 have half-width 4.303 / sqrt(3)."""
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert half_width([1.0]) is None
    assert half_width([1.0, float("nan")]) is None


def test_batches_that_remember_widen_the_interval() -> None:
    alternating, rising = [1.0, 2.0] * 5, [1.0 + k / 9 for k in range(10)]
    assert batch_half_width(alternating) == half_width(alternating)
    assert (batch_half_width(rising) or 0) > 2 * (half_width(rising) or 0)
    assert batch_half_width([1.0] * 5) == 0.0


def test_a_p99_of_one_congested_batch_has_no_interval() -> None:
    """All late requests are in one of ten batches: another one may double the P99."""

    def stretch(slow: int) -> Result:
        pool = PoolResult("all", 1, requests=500, duration_s=10.0)
        pool.ttft.add([0.1 + index / 5000 for index in range(500 - slow)])
        pool.ttft.add([5.0] * slow)
        return Result([pool], duration_s=10.0, measured=500)

    def of(*slow: int) -> Result:
        batches = tuple(map(stretch, slow))
        result = Result.of(batches)
        result.batches = batches
        return result

    one = of(0, 0, 0, 0, 60, 0, 0, 0, 0, 0).p99(lambda pool: pool.ttft, 0)
    assert one.value == pytest.approx(5.0, rel=0.01)
    assert one.half_width is None
    assert one.relative == math.inf
    each = of(*[3, 2] * 5).p99(lambda pool: pool.ttft, 0)
    assert each.relative < 0.1
