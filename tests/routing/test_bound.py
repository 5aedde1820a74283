"""The bound above the estimate, which works with any estimator."""

import random
from collections.abc import Sequence
from typing import Protocol

import pytest

from extproc.routing.baselines import BytesOverFour, SemanticRouterRule
from extproc.routing.bound import Bounded
from extproc.routing.estimate import Estimator
from extproc.routing.features import Features, measure
from extproc.routing.ratio import Ema, TextEma
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt
from extproc.routing.risk import Margin, NoMargin


class Sample(Protocol):
    features: Features
    category: str
    prompt_tokens: int


ESTIMATORS = [Ema, TextEma, BytesOverFour, SemanticRouterRule, TextEstimator]


@pytest.mark.parametrize("make", ESTIMATORS)
def test_any_estimator_can_hold_a_stated_risk(
    samples: Sequence[Sample], make: type[Estimator]
) -> None:
    estimator = Bounded(make(), Margin(0.05))
    above = 0
    for n, sample in enumerate(samples):
        estimate = estimator.estimate("m", sample.category, sample.features)
        above += n >= 300 and sample.prompt_tokens > estimate.bound_tokens
        estimator.observe("m", sample.category, sample.features, sample.prompt_tokens)
    assert 0.02 < above / (len(samples) - 300) < 0.08
    assert estimator.margin.achieved("m") == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("make", ESTIMATORS)
def test_without_a_margin_the_point_is_the_bound(make: type[Estimator]) -> None:
    estimator = Bounded(make(), NoMargin())
    features = measure(Prompt(b"Hello, world. " * 30), 500)
    for _ in range(20):
        estimator.observe("m", "prose", features, 90)
    estimate = estimator.estimate("m", "prose", features)
    assert estimate.bound_tokens - estimate.prompt_tokens in (0, 1)  # rounding
    assert (estimator.margin.rate, estimator.margin.achieved()) == (None, None)


@pytest.mark.parametrize("make", ESTIMATORS)
@pytest.mark.parametrize("margin", [Margin, NoMargin])
def test_a_quick_estimate_says_how_large_the_bound_can_be(
    make: type[Estimator], margin: type[Margin | NoMargin]
) -> None:
    rng = random.Random(4)
    estimator = Bounded(make(), margin())
    for _ in range(60):
        text = rng.choice(["one word ", "42 ", "{[()]} ", "漢字"]) * rng.randint(1, 90)
        features = measure(Prompt(text.encode()), len(text) + 60)
        quick = estimator.quick_estimate("m", "prose", features)
        exact = estimator.estimate("m", "prose", features)
        assert quick.estimate.prompt_tokens == exact.prompt_tokens
        assert exact.bound_tokens <= quick.largest_bound_tokens + 1
        estimator.observe("m", "prose", features, max(1, len(text) // 3))


def test_the_parts_that_learn_are_kept_apart() -> None:
    components = [one.component for one in Bounded(TextEstimator()).learners]
    assert [name.partition(".")[0] for name in components] == ["text", "margin"]
    assert [one.component for one in Bounded(Ema(), NoMargin()).learners] == ["ema.1"]
    assert Bounded(BytesOverFour(), NoMargin()).learners == []
