"""When a challenger replaces the champion, and when it does not."""

import pytest

from extproc.routing.trial import LEAST_OBSERVATIONS, LONGEST, Trial


def compare(
    trial: Trial, categories: str, incumbent: float, challenger: float, times: int = 30
) -> bool:
    """Compare on prompts of these categories in turn; return whether the challenger
    won.
    """
    won = False
    names = categories.split()
    for n in range(times):
        trial.add(names[n % len(names)], incumbent, challenger)
        won = won or trial.won
    return won


@pytest.mark.parametrize(
    ("known", "categories", "incumbent", "challenger", "won"),
    [
        ("prose code", "prose code", 0.3, 0.05, True),
        ("prose code", "prose code", 0.3, 0.28, False),
        ("prose code", "other_script", 0.5, 0.05, False),
        ("prose code", "other_script prose", 0.5, 0.05, False),
        ("prose code cjk", "other_script prose cjk", 0.5, 0.05, True),
        ("prose", "prose", 0.3, 0.05, True),
        ("", "prose code", 0.3, 0.05, True),
        ("", "prose", 0.3, 0.05, True),
    ],
    ids=[
        "another model",
        "hardly better",
        "a new kind of text",
        "a new kind beside one known",
        "another model, and a new kind",
        "one category, another model",
        "restarted",
        "restarted, one category",
    ],
)
def test_a_challenger_must_be_better_on_what_was_known(
    known: str, categories: str, incumbent: float, challenger: float, won: bool
) -> None:
    trial = Trial(known.split())
    assert compare(trial, categories, incumbent, challenger) is won


def test_a_few_prompts_decide_nothing() -> None:
    trial = Trial()
    assert not compare(trial, "prose code", 0.9, 0.0, LEAST_OBSERVATIONS - 1)


def test_one_category_is_won_by_most_prompts_not_by_a_few_large_errors() -> None:
    trial = Trial(["prose"])
    for n in range(60):
        trial.add("prose", *((0.9, 0.0) if n % 3 == 0 else (0.02, 0.05)))
    assert not trial.won


def test_a_trial_ends() -> None:
    trial = Trial()
    compare(trial, "prose", 0.1, 0.1, LONGEST)
    assert not trial.over
    trial.add("prose", 0.1, 0.1)
    assert trial.over
