import json

import pytest

from extproc.routing.decision import Decision, Outcome
from extproc.routing.evaluation import Evaluation
from extproc.routing.policy import Pool, Reason

LONG = Pool("long", 65536, 65536)


def decision(
    estimate: int,
    *,
    bound: int | None = None,
    output: int = 0,
    declared: bool = True,
    category: str = "prose",
    reason: Reason = Reason.WITHIN_THRESHOLD,
) -> Decision:
    return Decision(
        LONG,
        reason,
        category=category,
        prompt_tokens=estimate,
        bound_tokens=estimate if bound is None else bound,
        output_tokens=output,
        declared=declared,
    )


def test_errors_are_relative_to_the_count() -> None:
    evaluation = Evaluation()
    evaluation.add(decision(110), Outcome(200, 100, 0))
    evaluation.add(decision(80), Outcome(200, 100, 0))
    evaluation.add(decision(200), Outcome(200, 200, 0))

    report = evaluation.report()

    assert report["scored"] == 3
    assert report["mape_pct"] == 10.0
    assert report["bias_pct"] == pytest.approx(-3.33)


def test_under_estimates_are_counts_above_the_bound() -> None:
    evaluation = Evaluation()
    for counted in (99, 100, 101, 150):
        evaluation.add(decision(50, bound=100), Outcome(200, counted, 0))

    assert evaluation.report()["under_estimate_rate"] == 0.5


@pytest.mark.parametrize(
    ("made", "prompt", "completion", "under", "over"),
    [
        pytest.param(decision(90, output=10), 90, 5, 0, 0, id="fits"),
        pytest.param(decision(90, output=11), 90, 5, 0, 0, id="needs-its-limit"),
        pytest.param(decision(90, output=10), 91, 5, 100, 0, id="under"),
        pytest.param(decision(91, output=10), 90, 5, 0, 100, id="over"),
        pytest.param(
            decision(80, output=10, declared=False), 80, 30, 100, 0, id="undeclared"
        ),
        pytest.param(
            decision(80, output=30, declared=False),
            80,
            5,
            0,
            100,
            id="allowed-too-much",
        ),
        pytest.param(decision(50, bound=101), 60, 0, 0, 100, id="by-the-bound"),
    ],
)
def test_misroutes_at_a_threshold(
    made: Decision, prompt: int, completion: int, under: float, over: float
) -> None:
    evaluation = Evaluation((100,))
    evaluation.add(made, Outcome(200, prompt, completion))

    assert evaluation.report()["misroute_pct"] == {
        "100": {"under": under, "over": over}
    }


def test_point_misroutes_look_at_the_prompt_estimate_alone() -> None:
    evaluation = Evaluation((100,))
    evaluation.add(
        decision(80, bound=120, output=30, declared=False), Outcome(200, 80, 5)
    )

    assert evaluation.report()["misroute_point_pct"] == {"100": {"under": 0, "over": 0}}


def test_each_threshold_and_category_is_scored_by_itself() -> None:
    evaluation = Evaluation((100, 1000))
    evaluation.add(decision(50), Outcome(200, 150, 0))
    evaluation.add(decision(500, category="code"), Outcome(200, 400, 0))

    report = evaluation.report()

    assert report["misroute_pct"]["100"] == {"under": 50.0, "over": 0.0}
    assert report["misroute_pct"]["1000"] == {"under": 0.0, "over": 0.0}
    assert list(report["by_category"]) == ["code", "prose"]
    assert report["by_category"]["code"]["mape_pct"] == 25.0


def test_a_decision_that_failed_open_is_not_scored() -> None:
    evaluation = Evaluation((100,))
    evaluation.add(decision(0, reason=Reason.UNPARSABLE), Outcome(200, 5000, 10))

    assert evaluation.report()["scored"] == 0


def test_an_empty_report_is_a_report() -> None:
    report = Evaluation().report()

    assert json.loads(json.dumps(report)) == report
    assert set(report["misroute_pct"]) == {"2048", "4096", "8192"}
    assert report["mape_pct"] == 0.0
