"""A small plan, end to end: every policy, the answer and the page."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from extproc.cli import main
from extproc.fleet.emit import Serving, files
from extproc.fleet.plan_document import (
    _fractions,
    _overall_gain,
    answer,
    as_json,
)
from extproc.fleet.planning import PolicyTask, SizedPolicy, size_policy
from extproc.fleet.question import Question, policies
from extproc.fleet.report import render
from extproc.fleet.sensitivity import misroutes, sweep
from extproc.fleet.sizing import Engine
from extproc.fleet.steptime import Linear
from extproc.fleet.strategy import StrategyName
from extproc.fleet.verdict import verdict

from .questions import small_question

# A small engine that fits 9 sequences of 8,192 tokens, or 2 sequences of 32,768.
STEP = Linear(base_s=0.005, seq_s=2e-4, token_s=1e-5, context_s=1e-8)
ENGINE = Engine("toy", STEP, 4800, 16, 2, 1.5)


def question(workload: str, rate: float) -> Question:
    return small_question(workload, ENGINE, rate)


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
    plan = answer(asked, sized)
    document = as_json(plan)
    json.dumps(document, allow_nan=False)
    assert plan.instances == sum(pool.instances for pool in plan.pools)
    for pool in document["pools"]:
        assert {
            "name",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "utilization",
            "requests_measured",
            "p99_ttft_s",
            "p99_tpot_s",
            "mean_ttft_s",
            "half_widths",
        } <= set(pool)
        assert pool["utilization"] <= 1 - asked.headroom + 0.02
    worst = plan.baselines["homogeneous-worst-case"].instances
    paged = plan.baselines["homogeneous-paged"].instances
    assert worst > paged
    first = plan.saving_from_not_sizing_for_the_worst_case_pct
    second = plan.saving_from_the_split_pct
    assert first is not None
    assert second is not None
    assert plan.saving_pct == pytest.approx(first + second, abs=0.11)
    assert plan.dollars_per_year_saved == round(
        (worst - plan.instances) * 2 * 1.5 * 8760
    )
    assert plan.alpha == pytest.approx(0.98, abs=0.01)
    assert plan.slo_met
    assert document["split"]["p99_ttft_s"] > 0
    assert document["split"]["instances_by_pool"] == [p.instances for p in plan.pools]


def unpriced(asked: Question) -> Question:
    return replace(asked, engine=replace(ENGINE, usd_per_gpu_hour=0))


def test_without_a_price_there_are_no_dollars(
    asked: Question, sized: dict[str, SizedPolicy]
) -> None:
    plan = answer(unpriced(asked), sized)
    assert plan.usd_per_gpu_hour is plan.dollars_per_year is None
    assert plan.dollars_per_year_saved is None


def test_the_verdict_tells_the_split_from_the_worst_case(
    asked: Question,
    sized: dict[str, SizedPolicy],
) -> None:
    assert "raise it to 256 first" in verdict(asked, sized)
    costly = sized | {"split": replace_instances(sized["split"], 3)}
    assert "does not pay" in verdict(asked, costly)


@pytest.mark.parametrize(
    "name", ["split", "homogeneous-paged", "homogeneous-worst-case"]
)
@pytest.mark.parametrize("why", ["misses", "rejects"])
def test_no_saving_is_claimed_with_a_fleet_that_misses_or_rejects(
    asked: Question, sized: dict[str, SizedPolicy], name: str, why: str
) -> None:
    policy = sized[name]
    if why == "misses":
        broken = replace(policy, kept=[False] * len(policy.kept))
    else:
        broken = replace(policy, rejected=0.07)
    plan = answer(asked, sized | {name: broken})
    own = plan.saving_from_the_split_pct
    against_today = plan.dollars_per_year_saved
    against_mended = plan.dollars_per_year_saved_against_paged
    assert own is None
    if name == "split":
        assert "no saving is claimed" in plan.verdict
        assert against_today is against_mended is None
        assert all(row.saving_pct is None for row in plan.policies.values())
    elif name == "homogeneous-paged":
        assert "Only the split will do" in plan.verdict
        assert against_mended is None
        assert plan.baselines[name].saving_pct is None
    else:
        assert plan.saving_pct is against_today is None
        assert against_mended is not None


def test_more_pools_have_figures_of_their_own(
    asked: Question, sized: dict[str, SizedPolicy]
) -> None:
    """The formula for several pools equals the sum of the terms of the single pools."""
    plan = answer(asked, sized)
    parts = sum(pool.alpha * (1 - 1 / pool.rho) for pool in plan.pools[:-1])
    assert plan.formula_saving_pct == pytest.approx(100 * parts, abs=0.06)
    assert sum(pool.alpha for pool in plan.pools) == pytest.approx(1)
    wider = replace(asked, thresholds=(512, 4096))
    fractions = _fractions(wider)
    assert len(fractions) == 3
    assert sum(fractions) == pytest.approx(1)
    overall = _overall_gain([0.5, 0.3], [4.0, 2.0])
    assert 0.8 * (1 - 1 / overall) == pytest.approx(0.5 * 0.75 + 0.3 * 0.5)


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


SERVING = Serving("org/model", 0.92)


def test_the_page_stands_alone(asked: Question, sized: dict[str, SizedPolicy]) -> None:
    """The SVG is well formed, loads no other file, and contains every plot."""
    points = sweep(asked, (1024, 4096))
    plan = answer(asked, sized, points)
    errors = misroutes(
        asked, sized["split"].policy.tiers, (StrategyName.ROUTER,), (0.0, 1.0), n=300
    )
    page = render(asked, sized, plan, errors, SERVING)
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
    assert plan.verdict in page.replace("&#x27;", "'")
    assert "one pool, max_num_seqs mended" in page
    assert "vllm serve org/model --max-model-len 4096" in page
    assert "&#177;" in page
    bare = answer(unpriced(asked), sized)
    without = render(asked, sized, bare, errors, SERVING)
    assert "Saving by threshold" not in without
    assert "no price given" in without


def test_a_plan_is_emitted_as_files_that_the_router_takes(
    asked: Question, sized: dict[str, SizedPolicy], tmp_path: Path
) -> None:
    plan = answer(asked, sized)
    found = files(plan, SERVING, deployments=True)
    assert set(found) == {
        "vllm-short.sh",
        "vllm-long.sh",
        "router.yaml",
        "deployment-short.yaml",
        "deployment-long.yaml",
    }
    config = yaml.safe_load(found["router.yaml"])
    assert [pool["max_model_len"] for pool in config["pools"]] == [4096, 32_768]
    assert config["pools"][0]["threshold_tokens"] == 4096
    path = tmp_path / "router.yaml"
    path.write_text(found["router.yaml"])
    assert main(["check-config", str(path)]) == 0
    for pool in plan.pools:
        line = found[f"vllm-{pool.name}.sh"].splitlines()[-1]
        words = shlex.split(line)
        assert words[:4] == ["exec", "vllm", "serve", "org/model"]
        assert words[words.index("--max-num-batched-tokens") + 1] == str(
            pool.max_num_batched_tokens
        )
        patch = yaml.safe_load(found[f"deployment-{pool.name}.yaml"])
        assert patch["spec"]["replicas"] == pool.instances
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        assert container["args"][0] == "org/model"
        assert f"--max-num-seqs={pool.max_num_seqs}" in container["args"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert set(files(plan, SERVING, deployments=False)) == {
        "vllm-short.sh",
        "vllm-long.sh",
        "router.yaml",
    }
