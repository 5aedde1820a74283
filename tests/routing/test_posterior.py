from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from extproc.routing.mergeable import merge
from extproc.routing.posterior import Posterior
from extproc.routing.prior import Prior, known_families, make_prior

TRUE = np.array([3.0, -1.0, 0.5])
FOREVER = 1e12


def vague() -> Prior:
    return make_prior(np.zeros(3), np.eye(3))


def draw(count: int, seed: int = 1) -> list[tuple[np.ndarray, float]]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 3))
    return [(row, float(row @ TRUE + 0.1 * rng.normal())) for row in rows]


def learned(rows: list[tuple[np.ndarray, float]], memory: float = FOREVER) -> Posterior:
    posterior = Posterior(vague(), memory)
    for x, y in rows:
        posterior.learn(x, y, 0.01)
    return posterior


def predict(posterior: Posterior, x: np.ndarray) -> tuple[float, float]:
    return float(x @ posterior.mean), posterior.variance(x)


def test_starts_from_the_prior() -> None:
    mean, variance = predict(Posterior(vague(), FOREVER), np.array([2.0, 0.0, 0.0]))
    assert (mean, variance) == (0.0, 4.0)


def test_equals_the_closed_form() -> None:
    rows = draw(20)
    x = np.array([row for row, _ in rows])
    y = np.array([value for _, value in rows])
    covariance = np.linalg.inv(np.eye(3) + x.T @ x / 0.01)
    expected = covariance @ x.T @ y / 0.01
    probe = np.array([1.0, 2.0, 3.0])
    posterior = Posterior(vague(), FOREVER)
    assert posterior.restore(learned(rows).snapshot())
    mean, variance = predict(posterior, probe)
    assert mean == pytest.approx(probe @ expected)
    assert variance == pytest.approx(probe @ covariance @ probe)


def test_is_never_far_behind_its_observations() -> None:
    posterior = learned(draw(300))
    mean, variance = predict(posterior, np.array([1.0, 1.0, 1.0]))
    assert mean == pytest.approx(TRUE.sum(), abs=0.05)
    assert variance < 1e-3


def test_many_observations_at_once_teach_what_they_teach_in_turn() -> None:
    rng = np.random.default_rng(3)
    prior = known_families()
    together, in_turn = Posterior(prior, 100.0), Posterior(prior, 100.0)
    for _ in range(90):
        x = rng.poisson(9.0, size=len(prior.mean)).astype(float)
        y = float(x @ prior.mean) * rng.lognormal(0.0, 0.1)
        together.learn(x, y, 0.01 * y * y)
        in_turn.learn(x, y, 0.01 * y * y)
        in_turn.solve()
    together.solve()
    assert together.mean == pytest.approx(in_turn.mean, rel=1e-6, abs=1e-6)
    assert together.variance(x) == pytest.approx(in_turn.variance(x), rel=1e-6)
    sums = together.snapshot().sums
    assert sums == pytest.approx(in_turn.snapshot().sums, rel=1e-9, abs=1e-12)


def test_a_copied_group_and_who_goes_on_from_it_share_their_memory() -> None:
    posterior, restored = learned(draw(40)), Posterior(vague(), FOREVER)
    group = posterior.snapshot()
    before = group.sums.copy()
    assert restored.restore(group)
    posterior.solve()
    assert predict(restored, TRUE) == pytest.approx(predict(posterior, TRUE))
    for each in (posterior, restored):
        assert each._precision_sum is not None
        assert np.shares_memory(each._precision_sum, group.sums)
        for x, y in draw(50, seed=2):
            each.learn(x, y, 0.01)
        each.solve()
    assert group.sums.tolist() == before.tolist()


def test_forgets_old_observations_and_never_the_prior() -> None:
    posterior = learned(draw(400), memory=10)
    assert posterior.observed < 11
    for _ in range(500):
        posterior.learn(np.array([1.0, 0.0, 0.0]), 7.0, 0.01)
    mean, variance = predict(posterior, np.array([0.0, 1.0, 0.0]))
    assert mean == pytest.approx(0.0, abs=1e-6)
    assert variance == pytest.approx(1.0, rel=1e-6)


def test_what_two_processes_learned_apart_adds_up() -> None:
    rows = draw(90)
    base = learned(rows[:30], memory=100)
    one, other = (Posterior(vague(), 100) for _ in range(2))
    for posterior, own in ((one, rows[30:60]), (other, rows[60:])):
        assert posterior.restore(base.snapshot())
        for x, y in own:
            posterior.learn(x, y, 0.01)
    groups = ({"m": p.snapshot()} for p in (base, one, other))
    together = Posterior(vague(), 100)
    assert together.restore(merge(*groups)["m"])
    assert together.observations == 90
    in_turn = Posterior(vague(), 100)
    assert in_turn.restore(learned(rows[:30] + rows[60:] + rows[30:60], 100).snapshot())
    probe = np.array([1.0, -2.0, 0.5])
    assert predict(together, probe) == pytest.approx(predict(in_turn, probe))


def test_restores_what_it_snapshots() -> None:
    posterior, restored = learned(draw(40)), Posterior(vague(), FOREVER)
    group = posterior.snapshot()
    assert restored.restore(group)
    again = restored.snapshot()
    assert again.sums.tolist() == group.sums.tolist()
    assert (again.keep, again.observations) == (group.keep, 40)


@pytest.mark.parametrize(
    "change",
    [lambda sums: sums[:-1], lambda sums: -sums],
    ids=["size", "no observations make it"],
)
def test_leaves_what_is_not_its_own(
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    posterior = learned(draw(30))
    before = predict(posterior, TRUE)
    group = replace(posterior.snapshot(), observations=31)
    assert not posterior.restore(replace(group, sums=change(group.sums)))
    assert predict(posterior, TRUE) == before


def test_sums_that_no_observations_make_are_started_over_from() -> None:
    """An indefinite matrix is detected when it is first used, and then a new epoch
    starts.
    """
    group = learned(draw(30)).snapshot()
    upper = np.array([1.0, 9.0, 0.0, 1.0, 0.0, 1.0])  # not positive definite
    posterior = Posterior(vague(), FOREVER)
    assert posterior.restore(
        replace(group, sums=np.concatenate([upper, group.sums[6:]]))
    )
    assert predict(posterior, TRUE) == predict(Posterior(vague(), FOREVER), TRUE)
    assert (posterior.epoch, posterior.observations) == (group.epoch + 1, 0)
    assert not posterior.snapshot().sums.any()
