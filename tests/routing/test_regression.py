"""The default estimator with a stand-in tokenizer; test_accuracy.py uses the corpora."""

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import posterior
from extproc.routing.arithmetic import invert_positive
from extproc.routing.arrays import Matrix
from extproc.routing.bound import Bounded
from extproc.routing.bounded_table import MODELS
from extproc.routing.features import Features, measure
from extproc.routing.mergeable import DecayedSums, merge, snapshot
from extproc.routing.prior import known_families
from extproc.routing.regression import TextEstimator
from extproc.routing.request import Prompt
from extproc.routing.risk import Margin


class Sample(Protocol):
    features: Features
    category: str
    prompt_tokens: int


Copy = dict[str, dict[str, DecayedSums]]


def copy_out(estimator: Bounded) -> Copy:
    return {learner.component: snapshot(learner) for learner in estimator.learners}


def merge_all(base: Copy, ours: Copy, theirs: Copy) -> Copy:
    return {
        component: merge(base.get(component, {}), groups, theirs[component])
        for component, groups in ours.items()
    }


def restore(estimator: Bounded, copy: Copy) -> None:
    for learner in estimator.learners:
        learner.restore(copy[learner.component])


def learn(
    estimator: Bounded, samples: Sequence[Sample], model: str = "m"
) -> list[float]:
    """Estimate and then learn, sample by sample; return the relative errors."""
    errors = []
    for sample in samples:
        estimate = estimator.estimate(model, sample.category, sample.features)
        errors.append(abs(estimate.prompt_tokens / sample.prompt_tokens - 1))
        estimator.observe(model, sample.category, sample.features, sample.prompt_tokens)
    return errors


def mean_error(estimator: Bounded, samples: Sequence[Sample]) -> float:
    """Return the mean relative error of estimates, without learning."""
    errors = []
    for sample in samples:
        estimate = estimator.estimate("m", sample.category, sample.features)
        errors.append(abs(estimate.prompt_tokens / sample.prompt_tokens - 1))
    return float(np.mean(errors))


def test_learns_a_tokenizer_that_it_never_met(samples: list[Sample]) -> None:
    errors = learn(Bounded(TextEstimator()), samples[:600])
    assert np.mean(errors[:5]) < 0.5
    assert np.mean(errors[10:60]) < 0.1
    assert np.mean(errors[300:]) < 0.05


def test_keeps_the_stated_risk(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator(), Margin(0.05))
    exceeded = 0
    for n, sample in enumerate(samples):
        estimate = estimator.estimate("m", sample.category, sample.features)
        exceeded += n >= 300 and sample.prompt_tokens > estimate.bound_tokens
        estimator.observe("m", sample.category, sample.features, sample.prompt_tokens)
    assert 0.03 < exceeded / (len(samples) - 300) < 0.08
    achieved = estimator.margin.achieved("m")
    assert achieved is not None
    assert 0.03 < achieved < 0.08


def test_recovers_when_the_model_behind_a_name_changes(
    samples: list[Sample], other_samples: list[Sample]
) -> None:
    estimator = Bounded(TextEstimator())
    settled = np.mean(learn(estimator, samples[:600])[-100:])
    errors = learn(estimator, other_samples[600:800])
    assert np.mean(errors[:15]) > 3 * settled
    assert np.mean(errors[50:]) < 0.06


def test_does_not_forget_for_a_new_kind_of_text(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:400])
    known = mean_error(estimator, samples[400:500])
    hangul = [
        measure(Prompt(("가나다라마 바사 " * n).encode()), 0) for n in range(20, 60)
    ]
    for features in hangul:
        estimator.observe("m", "cjk", features, features.text_bytes // 2)
    assert mean_error(estimator, samples[400:500]) < known + 0.01


def test_a_deposed_model_comes_back_if_it_was_right(
    samples: list[Sample], other_samples: list[Sample]
) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:600])
    before = mean_error(estimator, samples[900:1000])
    # The name temporarily belongs to another model, and then to the original model
    # again.
    learn(estimator, other_samples[600:660])
    learn(estimator, samples[660:760])
    assert mean_error(estimator, samples[900:1000]) < 2 * before


def test_a_run_of_a_new_kind_of_text_deposes_nothing(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:600])
    for n in range(60):
        text = ("\u0915\u0916 \u0917 " * (20 + n)).encode()
        features = measure(Prompt(text), 0)
        estimator.observe("m", "other_script", features, len(text))
    assert copy_out(estimator)[TextEstimator.component]["m"].epoch == 0


def test_a_settled_model_learns_a_new_script_at_once(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:600])
    text = ("\u1780\u1784\u1787 " * 200).encode()
    khmer = measure(Prompt(text), 0)
    counted = len(text)
    before = estimator.estimate("m", "other_script", khmer).prompt_tokens
    assert abs(before / counted - 1) > 0.2
    estimator.observe("m", "other_script", khmer, counted)
    after = estimator.estimate("m", "other_script", khmer).prompt_tokens
    assert after == pytest.approx(counted, rel=0.1)


def test_several_surprises_of_one_kind_are_believed(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:1000])
    text = b"zq jx kv wq " * 90
    odd = measure(Prompt(text), 0)
    counted = estimator.estimate("m", "strange", odd).prompt_tokens // 3
    for _ in range(12):
        estimator.observe("m", "strange", odd, counted)
    after = estimator.estimate("m", "strange", odd).prompt_tokens
    assert after == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize(
    "lie",
    [
        lambda rng, tokens: 10 * tokens,
        lambda rng, tokens: 2 * tokens,
        lambda rng, tokens: max(1, tokens // 2),
        lambda rng, tokens: 1,
        lambda rng, tokens: rng.randint(1, 200_000),
    ],
    ids=["tenfold", "double", "half", "one", "random"],
)
def test_one_false_count_in_ten_moves_the_error_by_less_than_a_point(
    samples: list[Sample], lie
) -> None:
    rng = random.Random(11)
    honest, deceived = Bounded(TextEstimator()), Bounded(TextEstimator())
    for sample in samples[:1000]:
        key = ("m", sample.category, sample.features)
        honest.observe(*key, sample.prompt_tokens)
        false = lie(rng, sample.prompt_tokens) if rng.random() < 0.1 else None
        deceived.observe(*key, false or sample.prompt_tokens)
    rest = samples[1000:]
    assert mean_error(deceived, rest) < mean_error(honest, rest) + 0.01


def test_models_are_told_apart(
    samples: list[Sample], other_samples: list[Sample]
) -> None:
    estimator = Bounded(TextEstimator())
    for one, other in zip(samples[:300], other_samples[:300], strict=True):
        estimator.observe("one", one.category, one.features, one.prompt_tokens)
        estimator.observe("other", one.category, one.features, other.prompt_tokens)
    digits = measure(Prompt(b"12345678 " * 100), 0)
    few = estimator.estimate("one", "digits", digits).prompt_tokens
    many = estimator.estimate("other", "digits", digits).prompt_tokens
    assert many > 1.8 * few


def test_invented_model_names_share_and_do_not_displace(samples: list[Sample]) -> None:
    learner = TextEstimator(models=4)
    estimator = Bounded(learner)
    learn(estimator, samples[:300])
    before = mean_error(estimator, samples[300:400])
    for n, sample in enumerate(samples[:200]):
        estimator.observe(f"invented {n}", sample.category, sample.features, 7)
    assert mean_error(estimator, samples[300:400]) == before
    assert len(snapshot(learner)) == 4
    assert MODELS >= 16


def test_estimating_learns_and_admits_nothing(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    before = plain(estimator)
    for sample in samples[:50]:
        estimator.estimate("m", sample.category, sample.features)
    assert plain(estimator) == before


def test_unfamiliar_text_gets_a_wider_bound(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:600])
    familiar = samples[700].features
    armenian = measure(Prompt("բարև ձեզ աշխարհ ".encode() * 60), 0)
    ratios = []
    for features in (familiar, armenian):
        estimate = estimator.estimate("m", "prose", features)
        ratios.append(estimate.bound_tokens / estimate.prompt_tokens)
    assert ratios[1] > 1.15 * ratios[0]


PROMPTS = st.builds(
    Prompt,
    text=st.binary(max_size=3000),
    messages=st.integers(0, 10_000),
    tools_text=st.binary(max_size=500),
    tools=st.integers(0, 50),
)


@given(PROMPTS, st.lists(st.tuples(PROMPTS, st.integers(1, 1 << 30)), max_size=8))
def test_is_bounded_whatever_was_seen(
    prompt: Prompt, seen: list[tuple[Prompt, int]]
) -> None:
    estimator = Bounded(TextEstimator())
    for other, tokens in seen:
        estimator.observe("m", "prose", measure(other, 0), tokens)
    estimate = estimator.estimate("m", "prose", measure(prompt, 0))
    assert 1 <= estimate.prompt_tokens <= estimate.bound_tokens
    most = 64 + 16 * prompt.messages + len(prompt.text) + 2 * len(prompt.tools_text)
    assert estimate.bound_tokens <= max(most, 1)


@pytest.mark.parametrize(
    ("prompt", "least", "most"),
    [
        (Prompt(b"Hi"), 2, 45),
        (Prompt(b"", tools_text=b'[{"type":"function"}]' * 20, tools=20), 60, 900),
        (Prompt(b"word " * 200_000), 150_000, 450_000),
        (Prompt(b"ok\n" * 10_000, messages=10_000), 30_000, 120_000),
        (Prompt(b" " * 1_000_000), 7_000, 1_000_000),
    ],
    ids=["one word", "only tools", "1 MB", "10,000 messages", "blanks"],
)
def test_extremes_are_of_the_right_size(prompt: Prompt, least: int, most: int) -> None:
    estimate = Bounded(TextEstimator()).estimate("m", "prose", measure(prompt, 0))
    assert least <= estimate.prompt_tokens <= most


def test_two_processes_together_know_what_one_would(samples: list[Sample]) -> None:
    one, two, alone = (
        Bounded(TextEstimator()),
        Bounded(TextEstimator()),
        Bounded(TextEstimator()),
    )
    for n, sample in enumerate(samples[:400]):
        key = ("m", sample.category, sample.features, sample.prompt_tokens)
        (one if n % 2 else two).observe(*key)
        alone.observe(*key)
    rest = samples[400:500]
    together = Bounded(TextEstimator())
    restore(together, merge_all({}, copy_out(one), copy_out(two)))
    expected = mean_error(alone, rest)
    assert mean_error(together, rest) == pytest.approx(expected, abs=0.005)
    assert mean_error(together, rest) <= mean_error(one, rest) + 0.001


def test_a_changed_model_reaches_the_other_processes(
    samples: list[Sample], other_samples: list[Sample]
) -> None:
    one, two = Bounded(TextEstimator()), Bounded(TextEstimator())
    learn(one, samples[:300])
    base = copy_out(one)
    restore(two, base)
    learn(one, other_samples[300:400])
    learn(two, samples[300:303])
    restore(two, merge_all(base, copy_out(two), copy_out(one)))
    assert mean_error(two, other_samples[400:500]) < 0.06
    assert isinstance(two.estimator, TextEstimator)
    assert snapshot(two.estimator)["m"].epoch == 1


def test_a_restarted_process_goes_on_where_it_stopped(samples: list[Sample]) -> None:
    estimator, restarted = Bounded(TextEstimator()), Bounded(TextEstimator())
    learn(estimator, samples[:300])
    restore(restarted, copy_out(estimator))
    assert plain(restarted) == plain(estimator)
    for sample in samples[300:350]:
        key = ("m", sample.category, sample.features)
        expected = estimator.estimate(*key).prompt_tokens
        assert restarted.estimate(*key).prompt_tokens == pytest.approx(
            expected, rel=0.02
        )


def test_what_others_learned_is_solved_when_it_is_asked_for(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To invert the matrices of 64 models in one step would take a fifth of a second."""
    estimator, other = Bounded(TextEstimator()), Bounded(TextEstimator())
    for sample in samples[:32]:
        for model in ("a", "b", "c"):
            estimator.observe(
                model, sample.category, sample.features, sample.prompt_tokens
            )
    groups = copy_out(estimator)
    solutions = []

    def counted(matrix: Matrix) -> Matrix:
        solutions.append(1)
        return invert_positive(matrix)

    monkeypatch.setattr(posterior, "invert_positive", counted)
    restore(other, groups)
    assert len(solutions) == 0
    for model, sample in zip("aab", samples, strict=False):
        other.estimate(model, sample.category, sample.features)
    solved = len(solutions)
    assert solved == 2
    assert copy_out(other).keys() == groups.keys()
    assert len(solutions) == solved


def test_leaves_what_is_not_its_own(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:50])
    before = mean_error(estimator, samples[:20])
    odd = DecayedSums(0.9, 5, np.ones(7))
    for learner in estimator.learners:
        learner.restore(dict.fromkeys(["?", *snapshot(learner)], odd))
    assert mean_error(estimator, samples[:20]) == before


def test_explains_an_estimate_by_its_terms(samples: list[Sample]) -> None:
    estimator = Bounded(TextEstimator())
    learn(estimator, samples[:100])
    sample = samples[100]
    explanation: Any = estimator.explain("m", sample.category, sample.features)
    estimate = estimator.estimate("m", sample.category, sample.features)
    tokens = [term["tokens"] for term in explanation["terms"].values()]
    assert sum(tokens) == pytest.approx(estimate.prompt_tokens, rel=0.2)
    assert tokens == sorted(tokens, key=abs, reverse=True)
    assert estimate.bound_tokens == pytest.approx(
        estimate.prompt_tokens * explanation["factor"], rel=0.05
    )


def plain(estimator: Bounded) -> dict[str, list[float]]:
    return {
        f"{component} {key}": [group.observations, *group.sums]
        for component, groups in copy_out(estimator).items()
        for key, group in groups.items()
    }


def test_a_prior_can_be_given(samples: list[Sample]) -> None:
    without = Bounded(TextEstimator(known_families({"llama3"})))
    hi = measure(Prompt(b"Hi"), 0)
    assert (
        without.estimate("m", "prose", hi).prompt_tokens
        < Bounded(TextEstimator()).estimate("m", "prose", hi).prompt_tokens
    )
