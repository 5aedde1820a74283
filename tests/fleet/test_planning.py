"""A small plan, end to end: every policy, the answer, the page."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from extproc.fleet.planning import (
    PolicyTask,
    Question,
    SizedPolicy,
    complete_slo,
    policies,
    size_policy,
)
from extproc.fleet.report import render
from extproc.fleet.sensitivity import misroutes, sweep
from extproc.fleet.sizing import Engine
from extproc.fleet.slo import Slo
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName
from extproc.fleet.verdict import Prices, answer, verdict
from extproc.fleet.workload import WORKLOADS, RenewalArrivals

# A small engine: 9 sequences of 8,192 tokens, 2 of 32,768.
STEP = Linear(base_s=0.005, seq_s=2e-4, token_s=1e-5, context_s=1e-8)
ENGINE = Engine("toy", STEP, 4800, 16, 2, 1.5)


def question(workload: str, rate: float) -> Question:
    slo, budget = complete_slo(
        Slo(), WORKLOADS[workload], ENGINE, (4096,), 32_768, None, 1
    )
    return Question(
        WORKLOADS[workload],
        ENGINE,
        rate,
        RenewalArrivals(rate),
        slo,
        (4096,),
        32_768,
        budget,
        seed=1,
        asked_requests=2000,
        tried_requests=1000,
        verified_requests=1500,
    )


@pytest.fixture(scope="module")
def asked() -> Question:
    return question("lmsys", 100)


@pytest.fixture(scope="module")
def sized(asked: Question) -> dict[str, SizedPolicy]:
    chosen = ("homogeneous-worst-case", "homogeneous-paged", "split")
    return {
        policy.name: size_policy(PolicyTask(asked, policy))
        for policy in policies(asked)
        if policy.name in chosen
    }


def test_the_policies_are_the_papers_and_those_they_leave_out(asked: Question) -> None:
    found = {policy.name: policy for policy in policies(asked)}
    assert list(found) == [
        "homogeneous-worst-case",
        "split",
        "homogeneous-paged",
        "homogeneous-short-limit",
        "split-worst-case",
        "split-oracle",
        "split-prompt-length",
        "split-bytes/4",
    ]
    assert found["homogeneous-worst-case"].tiers[0].limits.max_num_seqs == 2
    assert found["homogeneous-paged"].tiers[0].limits.max_num_seqs == 256
    assert [t.limits.max_num_seqs for t in found["split-worst-case"].tiers] == [18, 2]
    assert found["split"].strategy.name is StrategyName.ROUTER


def test_three_thresholds_make_four_pools(asked: Question) -> None:
    wider = replace(asked, thresholds=(1024, 4096, 8192))
    split = next(p for p in policies(wider) if p.name == "split")
    assert [t.limits.max_model_len for t in split.tiers] == [1024, 4096, 8192, 32_768]


def test_the_answer_has_what_it_should_and_adds_up(
    asked: Question, sized: dict[str, SizedPolicy]
) -> None:
    document = answer(asked, sized, Prices(1.5, 2))
    json.dumps(document, allow_nan=False)
    assert document["instances"] == sum(p["instances"] for p in document["pools"])
    for pool in document["pools"]:
        assert {
            "name",
            "max_model_len",
            "max_num_seqs",
            "p99_ttft_s",
            "p99_tpot_s",
        } <= set(pool)
    worst = document["baselines"]["homogeneous-worst-case"]["instances"]
    paged = document["baselines"]["homogeneous-paged"]["instances"]
    assert worst > paged
    assert document["saving_pct"] == pytest.approx(
        document["saving_from_the_split_pct"]
        + document["saving_from_not_sizing_for_the_worst_case_pct"],
        abs=0.11,
    )
    assert document["dollars_per_year_saved"] == round(
        (worst - document["instances"]) * 2 * 1.5 * 8760
    )
    assert document["alpha"] == pytest.approx(0.98, abs=0.01)
    assert document["slo_met"]


def test_the_verdict_tells_the_split_from_the_worst_case(
    sized: dict[str, SizedPolicy],
) -> None:
    sentence = verdict(sized)
    assert "not sizing max_num_seqs for the worst case" in sentence
    costly = sized | {"split": replace_instances(sized["split"], 3)}
    assert "does not pay" in verdict(costly)


def replace_instances(policy: SizedPolicy, factor: int) -> SizedPolicy:
    return replace(policy, instances=[factor * n for n in policy.instances])


def test_the_sweep_rises_with_alpha_and_the_formula_is_the_formula(
    asked: Question,
) -> None:
    points = sweep(asked, (512, 2048, 8192, 65_536))
    assert [p.threshold_tokens for p in points] == [512, 2048, 8192]
    assert (
        points[0].short_fraction < points[1].short_fraction < points[2].short_fraction
    )
    for point in points:
        assert point.formula == pytest.approx(
            point.short_fraction * (1 - 1 / point.throughput_gain)
        )


def test_more_variation_means_more_misroutes(asked: Question) -> None:
    tiers = policies(asked)[1].tiers
    points = misroutes(asked, tiers, (StrategyName.ROUTER,), factors=(0.0, 3.0), n=800)
    assert points[1].under + points[1].over > points[0].under + points[0].over


def test_the_page_stands_alone(asked: Question, sized: dict[str, SizedPolicy]) -> None:
    """Well-formed SVG, nothing loaded from anywhere, every plot there."""
    points = sweep(asked, (1024, 4096))
    document = answer(asked, sized, Prices(1.5, 2), points) | {"wall_time_s": 1.0}
    errors = misroutes(
        asked, sized["split"].policy.tiers, (StrategyName.ROUTER,), (0.0, 1.0), n=300
    )
    page = render(asked, sized, document, errors)
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
    assert document["verdict"] in page.replace("&#x27;", "'")
