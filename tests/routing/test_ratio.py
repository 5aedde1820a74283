import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.routing.bound import Bounded
from extproc.routing.estimate import Estimate
from extproc.routing.features import Features
from extproc.routing.ratio import (
    MAX_BYTES_PER_TOKEN,
    MIN_BYTES_PER_TOKEN,
    Ema,
    TextEma,
    TextRatios,
    clamp_ratio,
    template_tokens,
)
from extproc.routing.regressors import VECTOR_TERMS
from extproc.routing.risk import NoMargin


def features(
    body: int = 0, text: int = 0, tools_text: int = 0, messages: int = 1
) -> Features:
    terms = np.zeros(len(VECTOR_TERMS))
    return Features(body, text, tools_text, messages, int(tools_text > 0), terms)


def tokens(estimator: Ema | TextEma, of: Features, category: str = "prose") -> int:
    prediction = estimator.predict("m", category, of)
    assert prediction.tokens == estimator.point("m", category, of)
    return round(prediction.tokens)


# The papers' estimator.


def test_ema_starts_from_four_bytes_a_token() -> None:
    bounded = Bounded(Ema(), NoMargin())
    assert bounded.estimate("m", "prose", features(body=4001)) == Estimate(1001, 1001)


def test_ema_follows_the_published_formula_sample_by_sample() -> None:
    """Compute c and sigma by hand for beta 0.95.

    c += 0.05 (x - c), and sigma is updated in the same way.
    """
    ema = Ema()
    samples = [
        # body bytes, tokens   c          sigma
        (1000, 500, 3.9, 0.095),
        (1200, 200, 4.005, 0.19),
        (800, 200, 4.00475, 0.1807375),
    ]

    for body, counted, ratio, deviation in samples:
        ema.observe("m", "prose", features(body=body), counted)

        learned = ema._learned["prose"]
        assert learned.bytes_per_token == pytest.approx(ratio, abs=1e-12)
        assert learned.deviation == pytest.approx(deviation, abs=1e-12)
        expected = math.ceil(100_000 / (ratio - deviation))
        assert tokens(ema, features(body=100_000)) == expected


def test_ema_takes_off_gamma_deviations() -> None:
    ema = Ema(gamma=2.0)
    ema.observe("m", "prose", features(body=1000), 500)

    assert tokens(ema, features(body=1000)) == math.ceil(1000 / (3.9 - 2 * 0.095))


def test_ema_weighs_the_old_ratio_with_beta() -> None:
    ema = Ema(beta=0.5)
    ema.observe("m", "prose", features(body=1000), 500)

    assert ema._learned["prose"].bytes_per_token == 3.0
    assert ema._learned["prose"].deviation == 0.5


def test_ema_counts_wire_bytes() -> None:
    estimate = tokens(Ema(), features(body=400, text=4000, tools_text=4000))

    assert estimate == 100


def test_ema_never_divides_by_less_than_a_token_can_have() -> None:
    ema = Ema(gamma=1000.0)
    ema.observe("m", "prose", features(body=1000), 500)

    assert tokens(ema, features(body=800)) == 1000


def test_categories_are_learned_apart() -> None:
    for estimator in (Ema(), TextEma()):
        estimator.observe("m", "code", features(body=2000, text=2000), 1000)

        of = features(body=4000, text=4000)
        assert tokens(estimator, of, "code") > tokens(estimator, of, "prose")


# The ratio of bytes to tokens over decoded text.


def test_text_ema_counts_text_and_tools_after_the_template() -> None:
    estimate = tokens(TextEma(), features(body=9, text=401, tools_text=200, messages=3))

    assert estimate == 8 + 2 * 4 + math.ceil(601 / 4)


def test_the_first_sample_is_the_ratio() -> None:
    ratios = TextRatios()
    assert ratios.bytes_per_token("prose") is None
    assert ratios.all() == {}

    ratios.observe("prose", features(text=500), 108)

    assert ratios.bytes_per_token("prose") == pytest.approx(5.0)
    assert ratios.all() == {"prose": pytest.approx(5.0)}


def test_text_ratio_after_each_sample() -> None:
    """Compute decayed sums by hand, without the template.

    B <- 0.98 B + b, and T <- 0.98 T + t.
    """
    ratios = TextRatios()
    for text, counted, total_bytes, total_tokens in [
        (500, 108, 500, 100),
        (300, 108, 790, 198),
        (3000, 608, 3774.2, 794.04),
    ]:
        ratios.observe("prose", features(text=text), counted)

        assert ratios.bytes_per_token("prose") == pytest.approx(
            total_bytes / total_tokens
        )


def test_large_prompts_weigh_more_than_small_ones() -> None:
    ratios = TextRatios()
    ratios.observe("prose", features(text=20), 8 + 10)
    ratios.observe("prose", features(text=50_000), 8 + 10_000)

    assert ratios.bytes_per_token("prose") == pytest.approx(5.0, abs=0.01)


def test_a_prompt_without_text_teaches_nothing() -> None:
    ratios = TextRatios()
    ratios.observe("prose", features(body=900), 100)

    assert ratios.all() == {}


@pytest.mark.parametrize(
    ("ratio", "clamped"),
    [(0.0, MIN_BYTES_PER_TOKEN), (5.0, 5.0), (1e9, MAX_BYTES_PER_TOKEN)],
)
def test_ratios_are_clamped_to_what_text_can_have(ratio: float, clamped: float) -> None:
    assert clamp_ratio(ratio) == clamped


@pytest.mark.parametrize("counted", [1, 10**6, 1 << 53])
def test_one_lie_moves_the_ratio_no_further_than_extreme_text(counted: int) -> None:
    honest, lied_to = TextRatios(), TextRatios()
    for _ in range(100):
        for ratios in (honest, lied_to):
            ratios.observe("prose", features(text=4000), 1008)
    lied_to.observe("prose", features(text=4000), counted)

    assert lied_to.bytes_per_token("prose") == pytest.approx(4.0, rel=0.1)


def test_template_tokens_grow_with_the_messages() -> None:
    assert [template_tokens(features(messages=n)) for n in (0, 1, 2, 5)] == [
        8,
        8,
        12,
        24,
    ]


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(["prose", "code", "cjk"]),
        st.integers(0, 1 << 21),
        st.integers(1, 1 << 53),
    ),
    max_size=20,
)


@settings(max_examples=50)
@given(samples=SAMPLES, text=st.integers(0, 1 << 21))
def test_whatever_was_learned_estimates_stay_within_what_text_can_have(
    samples: list[tuple[str, int, int]], text: int
) -> None:
    estimator, published = TextEma(), Ema()
    for category, size, counted in samples:
        estimator.observe("m", category, features(text=size, body=size), counted)
        published.observe("m", category, features(text=size, body=size), counted)

    of = features(text=text, body=text)
    assert text / 14 <= tokens(estimator, of) <= text / 0.8 + 10
    assert 1 <= tokens(published, of) <= text / 0.8 + 1


@settings(max_examples=50)
@given(
    samples=SAMPLES,
    sizes=st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)).map(sorted),
)
def test_more_bytes_are_never_fewer_tokens(
    samples: list[tuple[str, int, int]], sizes: list[int]
) -> None:
    small, large = sizes
    for estimator in (TextEma(), Ema()):
        for category, size, counted in samples:
            estimator.observe("m", category, features(text=size, body=size), counted)

        assert tokens(estimator, features(text=small, body=small)) <= tokens(
            estimator, features(text=large, body=large)
        )


@settings(max_examples=50)
@given(samples=SAMPLES)
def test_the_order_of_categories_is_irrelevant(
    samples: list[tuple[str, int, int]],
) -> None:
    mixed, sorted_ = TextRatios(), TextRatios()
    for category, size, counted in samples:
        mixed.observe(category, features(text=size), counted)
    for category, size, counted in sorted(samples, key=lambda sample: sample[0]):
        sorted_.observe(category, features(text=size), counted)

    assert mixed.all() == sorted_.all()


@settings(max_examples=30)
@given(ratio=st.floats(1.0, 10.0), start=st.floats(1.0, 10.0))
def test_the_ratio_converges_to_the_truth(ratio: float, start: float) -> None:
    ratios = TextRatios()
    ratios.observe("prose", features(text=4000), 8 + round(4000 / start))
    for _ in range(300):
        ratios.observe("prose", features(text=4000), 8 + round(4000 / ratio))

    assert ratios.bytes_per_token("prose") == pytest.approx(ratio, rel=0.02)
