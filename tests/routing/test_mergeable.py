import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.features import measure
from extproc.routing.mergeable import DecayedSums, merge, snapshot
from extproc.routing.ratio import Ema, TextEma, TextRatios
from extproc.routing.request import Prompt

KEEP = 0.9
samples = st.lists(st.floats(0.0, 1e6), max_size=30)


def learned(values, start=None):
    """Add these values to a given group, or to an empty group, and return the group."""
    sums = np.zeros(2) if start is None else start.sums
    count = 0 if start is None else start.observations
    for value in values:
        sums = KEEP * sums + np.array([value, 1.0])
    return DecayedSums(KEEP, count + len(values), sums)


def only(group):
    return {"key": group}


@given(samples, samples, samples)
def test_merging_is_learning_one_after_the_other(common, theirs, ours):
    base = learned(common)
    merged = merge(only(base), only(learned(ours, base)), only(learned(theirs, base)))[
        "key"
    ]

    in_turn = learned(common + theirs + ours)
    assert merged.observations == in_turn.observations
    assert merged.sums == pytest.approx(in_turn.sums, rel=1e-9, abs=1e-6)


@given(samples, samples)
def test_merging_what_was_merged_already_changes_nothing(common, ours):
    base = learned(common)
    mine = learned(ours, base)
    once = merge(only(base), only(mine), only(base))
    assert merge(once, once, once) == once
    assert once["key"] is mine


@given(st.lists(samples, min_size=1, max_size=6))
def test_processes_that_take_turns_converge(shares):
    """Processes merge into the store in turn, and all of them learn every sample."""
    store = {}
    for share in shares:
        store = merge({}, only(learned(share)), store)
    everything = learned([value for share in shares for value in share])
    assert store["key"].observations == everything.observations
    assert store["key"].sums == pytest.approx(everything.sums, rel=1e-9, abs=1e-6)


def test_a_group_dropped_here_stays_if_it_was_learned_into_elsewhere():
    base = {"idle": learned([1.0]), "busy": learned([1.0])}
    theirs = {"idle": base["idle"], "busy": learned([2.0], base["busy"])}
    assert merge(base, {}, theirs) == {"busy": theirs["busy"]}


def test_sums_of_another_size_are_not_added_up():
    mine = DecayedSums(KEEP, 3, np.ones(2))
    other = DecayedSums(KEEP, 5, np.ones(3))
    assert merge({}, only(mine), only(other)) == only(mine)


def features_of(text):
    prompt = Prompt(text=text.encode(), messages=1)
    return measure(prompt, len(text) + 60)


@pytest.mark.parametrize("make", [Ema, TextEma, TextRatios])
def test_a_learner_goes_on_from_its_snapshot(make):
    def teach(learner, tokens):
        features = features_of("the quick brown fox " * 20)
        if make is TextRatios:
            learner.observe("prose", features, tokens)
        else:
            learner.observe("model", "prose", features, tokens)

    one, other = make(), make()
    for tokens in (90, 110, 95):
        teach(one, tokens)
    other.restore(snapshot(one))
    for learner in (one, other):
        teach(learner, 130)

    before, after = snapshot(one)["prose"], snapshot(other)["prose"]
    assert after.observations == before.observations == 4
    assert after.sums == pytest.approx(before.sums, rel=1e-12)


@pytest.mark.parametrize("make", [Ema, TextEma, TextRatios])
def test_sums_that_cannot_be_its_own_are_left_out(make):
    learner = make()
    learner.restore({"prose": DecayedSums(KEEP, 1, np.ones(7))})
    assert snapshot(learner) == {}
