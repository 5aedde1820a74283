import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.allowance import OutputAllowance
from extproc.routing.mergeable import DecayedSums, merge, snapshot


def feed(allowance: OutputAllowance, median: float, count: int, **key: str) -> None:
    rng = random.Random(1)
    model, category = key.get("model", "m"), key.get("category", "prose")
    for _ in range(count):
        length = round(median * math.exp(rng.gauss(0.0, 0.9)))
        allowance.observe(model, category, max(1, length), truncated=False)


def test_is_the_default_before_anything_is_known() -> None:
    assert OutputAllowance(default_tokens=700).allow("m", "prose") == 700


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_learns_the_quantile(quantile: float) -> None:
    allowance = OutputAllowance(quantile, ceiling_tokens=100_000)
    feed(allowance, 180, 4000)
    z = {0.5: 0.0, 0.9: 1.2816, 0.95: 1.6449, 0.99: 2.3263}[quantile]
    expected = 180 * math.exp(0.9 * z)
    assert allowance.allow("m", "prose") == pytest.approx(expected, rel=0.15)


def test_moves_gradually_from_the_default() -> None:
    allowance = OutputAllowance(default_tokens=2048)
    feed(allowance, 20, 5)
    few = allowance.allow("m", "prose")
    feed(allowance, 20, 500)
    assert 100 > allowance.allow("m", "prose") < few < 2048


def test_categories_and_models_are_told_apart() -> None:
    allowance = OutputAllowance()
    feed(allowance, 30, 500, category="code")
    feed(allowance, 600, 500, category="prose")
    feed(allowance, 5, 500, model="other", category="prose")
    assert allowance.allow("m", "code") < 250
    assert allowance.allow("m", "prose") > 1500
    assert allowance.allow("other", "prose") < 60


def test_a_cut_answer_would_have_been_longer() -> None:
    """Half of the answers are truncated at 200 tokens; the others determine the
    quantile.
    """
    rng = random.Random(2)
    plain, censored = OutputAllowance(), OutputAllowance()
    for n in range(3000):
        length = max(1, round(300 * math.exp(rng.gauss(0.0, 0.5))))
        cut = n % 2 == 0 and length > 200
        plain.observe("m", "prose", min(length, 200) if cut else length, False)
        censored.observe("m", "prose", 200 if cut else length, cut)
    expected = 300 * math.exp(0.5 * 1.6449)
    assert censored.allow("m", "prose") == pytest.approx(expected, rel=0.15)
    assert plain.allow("m", "prose") < censored.allow("m", "prose")


def test_truncations_raise_the_allowance_up_to_the_ceiling() -> None:
    allowance = OutputAllowance(ceiling_tokens=3000)
    feed(allowance, 50, 200)
    before = allowance.allow("m", "prose")
    for _ in range(20):
        allowance.observe("m", "prose", 1000, truncated=True)
    raised = allowance.allow("m", "prose")
    assert before < 1000 <= raised
    for _ in range(500):
        allowance.observe("m", "prose", 1000, truncated=True)
    assert 2 * raised < allowance.allow("m", "prose") <= 3000


@given(st.lists(st.tuples(st.integers(-5, 1 << 40), st.booleans()), max_size=30))
def test_is_within_one_and_the_ceiling(answers: list[tuple[int, bool]]) -> None:
    allowance = OutputAllowance()
    for tokens, truncated in answers:
        allowance.observe("m", "prose", tokens, truncated)
        assert 1 <= allowance.allow("m", "prose") <= 4096


def test_models_and_categories_are_bounded() -> None:
    allowance = OutputAllowance(models=4)
    for n in range(100):
        allowance.observe(f"model {n}", f"category {n}", 10, False)
        allowance.observe("model 0", f"category {n}", 10, False)
    kept = list(snapshot(allowance))
    assert len([key for key in kept if key.startswith("all:")]) == 4
    assert len([key for key in kept if key.endswith(":model 0")]) == 1 + 32


def test_what_two_processes_learned_apart_adds_up() -> None:
    one, two = OutputAllowance(), OutputAllowance()
    feed(one, 400, 300, category="prose")
    feed(two, 20, 300, category="code")
    together, alone = OutputAllowance(), OutputAllowance()
    together.restore(merge({}, snapshot(one), snapshot(two)))
    feed(alone, 20, 300, category="code")
    feed(alone, 400, 300, category="prose")
    assert plain(together).keys() == plain(alone).keys()
    for key, expected in plain(alone).items():
        assert plain(together)[key] == pytest.approx(expected), key


def test_restores_what_it_snapshots() -> None:
    allowance = OutputAllowance()
    feed(allowance, 20, 300)
    restored = OutputAllowance()
    restored.restore(snapshot(allowance))
    assert plain(restored) == plain(allowance)
    assert restored.allow("m", "prose") == allowance.allow("m", "prose")


def plain(allowance: OutputAllowance) -> dict[str, list[float]]:
    groups = snapshot(allowance).items()
    return {key: [group.observations, *group.sums] for key, group in groups}


def test_leaves_what_is_not_its_own() -> None:
    allowance = OutputAllowance()
    small = DecayedSums(0.9, 3, np.ones(3))
    allowance.restore({"all": small, "category.code:m": small})
    assert plain(allowance)["all"] == plain(OutputAllowance())["all"]
    assert allowance.allow("m", "code") == 512


@pytest.mark.parametrize(
    "arguments",
    [{"quantile": 1.0}, {"default_tokens": 0}, {"ceiling_tokens": 100}],
    ids=str,
)
def test_refuses_settings_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        OutputAllowance(**arguments)  # type: ignore[arg-type]


def test_what_is_allowed_is_hardly_behind_the_answers() -> None:
    """The quantile is recomputed when 1/128 of all observations are new."""
    rng = random.Random(5)
    allowance = OutputAllowance()
    for n in range(3000):
        longest = 300 if n < 1500 else 3000
        allowance.observe("m", "prose", rng.randrange(1, longest), False)
        if n % 50 == 0:
            fresh = OutputAllowance()
            fresh.restore(snapshot(allowance))
            exact = fresh.allow("m", "prose")
            assert allowance.allow("m", "prose") == pytest.approx(exact, rel=0.2)


def test_the_first_answers_of_a_category_count_at_once() -> None:
    allowance = OutputAllowance()
    for _ in range(2000):
        allowance.observe("m", "prose", 100, False)
    before = allowance.allow("m", "code")
    for _ in range(20):
        allowance.observe("m", "code", 3000, False)
    assert allowance.allow("m", "code") > before
