import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from extproc.routing.mergeable import DecayedSums, merge, snapshot
from extproc.routing.risk import Margin

SPREAD = 0.05


def run(
    margin: Margin,
    draw: Callable[[], float],
    count: int,
    *,
    model: str = "m",
    category: str = "prose",
    skip: int = 500,
) -> float:
    """Feed errors; return the share of errors above their bound, without the first
    ones.
    """
    exceeded = 0
    for n in range(count):
        error = draw()
        over = error > math.log(margin.factor(model, category, SPREAD))
        margin.observe(model, category, SPREAD, error, over)
        exceeded += over and n >= skip
    return exceeded / (count - skip)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5], ids="scale={}".format)
def test_keeps_the_stated_rate(rate: float, scale: float) -> None:
    rng = random.Random(3)
    margin = Margin(rate)
    achieved = run(margin, lambda: rng.gauss(0.0, scale * SPREAD), 6000)
    assert 0.6 * rate < achieved < 1.4 * rate
    assert margin.achieved() == pytest.approx(achieved, abs=rate)
    assert margin.achieved("m") == margin.achieved()


def test_a_factor_is_hardly_behind_the_errors() -> None:
    """The quantile is recomputed when 1 % of all observations are new."""
    rng = random.Random(8)
    margin = Margin()
    for n in range(3000):
        error = rng.gauss(0.0, (0.5 if n < 1500 else 3.0) * SPREAD)
        over = error > math.log(margin.factor("m", "prose", SPREAD))
        margin.observe("m", "prose", SPREAD, error, over)
        if n % 50 == 0:
            fresh = Margin()
            fresh.restore(snapshot(margin))
            factors = (each.factor("m", "prose", SPREAD) for each in (margin, fresh))
            ours, exact = map(math.log, factors)
            assert ours == pytest.approx(exact, rel=0.12)


def test_keeps_it_when_errors_are_skewed() -> None:
    rng = random.Random(4)
    achieved = run(Margin(), lambda: SPREAD * (rng.expovariate(1.0) - 1.0), 8000)
    assert 0.005 < achieved < 0.015


def test_a_category_with_larger_errors_gets_a_larger_factor() -> None:
    rng = random.Random(5)
    margin = Margin()
    for _ in range(2000):
        for category, scale in (("calm", 0.5), ("wild", 2.0)):
            margin.observe("m", category, SPREAD, rng.gauss(0, scale * SPREAD), False)
    calm, wild = (margin.factor("m", c, SPREAD) for c in ("calm", "wild"))
    assert math.log(wild) > 3 * math.log(calm)


def test_a_new_model_starts_from_all_models() -> None:
    rng = random.Random(6)
    margin = Margin()
    before = margin.factor("new", "prose", SPREAD)
    run(margin, lambda: rng.gauss(0.0, 0.3 * SPREAD), 3000, model="old")
    assert margin.factor("new", "prose", SPREAD) < before
    assert margin.achieved("new") is None


def test_starts_at_a_few_spreads() -> None:
    assert 2 * SPREAD < math.log(Margin().factor("m", "prose", SPREAD)) < 5 * SPREAD
    assert Margin().achieved() is None


def test_a_factor_is_from_one_to_four() -> None:
    margin = Margin()
    assert margin.factor("m", "prose", 50.0) == pytest.approx(4.0)
    for _ in range(500):
        margin.observe("m", "prose", SPREAD, -0.1, False)
    assert margin.factor("m", "prose", SPREAD) == 1.0


def test_one_false_count_in_ten_does_not_move_the_quantile_to_itself() -> None:
    rng = random.Random(7)

    def draw() -> float:
        return math.log(10) if rng.random() < 0.1 else rng.gauss(0.0, SPREAD)

    margin = Margin()
    run(margin, draw, 5000)
    assert margin.factor("m", "prose", SPREAD) < 1.3
    assert margin.achieved() == pytest.approx(0.1, abs=0.03)


def test_categories_are_bounded() -> None:
    margin = Margin()
    for n in range(1000):
        margin.observe("m", f"invented {n}", SPREAD, 0.0, False)
    assert len(snapshot(margin)) < 100


def test_what_two_processes_learned_apart_adds_up() -> None:
    rng = random.Random(8)
    one, two = Margin(), Margin()
    for margin in (one, two):
        run(margin, lambda: rng.gauss(0.0, 2 * SPREAD), 1500)
    together = Margin()
    together.restore(merge({}, snapshot(one), snapshot(two)))
    factors = [m.factor("m", "prose", SPREAD) for m in (one, two)]
    assert math.log(together.factor("m", "prose", SPREAD)) == pytest.approx(
        math.log(factors[0] * factors[1]) / 2, rel=0.1
    )
    achieved = [m.achieved() or 0.0 for m in (one, two)]
    assert min(achieved) <= (together.achieved() or 0.0) <= max(achieved)


def test_restores_what_it_snapshots() -> None:
    rng = random.Random(9)
    margin = Margin()
    run(margin, lambda: rng.gauss(0.0, 2 * SPREAD), 1000)
    restored = Margin()
    restored.restore(snapshot(margin))
    assert plain(restored) == plain(margin)
    assert restored.factor("m", "prose", SPREAD) == margin.factor("m", "prose", SPREAD)


def plain(margin: Margin) -> dict[str, list[float]]:
    groups = snapshot(margin).items()
    return {key: [group.observations, *group.sums] for key, group in groups}


@pytest.mark.parametrize(
    ("key", "sums"),
    [
        ("bins", [1.0]),
        ("rate", [1.0]),
        ("squares.prose", [1.0]),
        ("not a key", [1.0]),
        ("not a key", [1.0, 2.0]),
    ],
)
def test_leaves_what_is_not_its_own(key: str, sums: list[float]) -> None:
    margin = Margin()
    margin.restore({key: DecayedSums(0.9, 5, np.array(sums))})
    assert plain(margin) == plain(Margin())


@pytest.mark.parametrize("rate", [0.0, 0.5, -1.0])
def test_refuses_a_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Margin(rate)
