"""One pool, a split, disaggregation, and a disaggregated split, for a small engine."""

import json
from dataclasses import asdict, replace

import pytest

from extproc.commands.plan_disaggregation import print_four_ways
from extproc.fleet.assignment import Inquiry, assign
from extproc.fleet.four_ways import FourWays, Way, four_ways, verdict
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.prefill_decode import KvTransfer
from extproc.fleet.question import Question, policies
from extproc.fleet.sizing import Engine
from extproc.fleet.steptime import Linear

from .questions import small_question

ENGINE = Engine("toy", Linear(5e-3, 2e-4, 1e-5, 1e-8), 4800, 16, 2, 1.5)
MOVED = KvTransfer(100_000)


@pytest.fixture(scope="module")
def asked() -> Question:
    return small_question("lmsys", ENGINE, 20)


@pytest.fixture(scope="module")
def sized(asked: Question) -> dict[str, SizedPolicy]:
    """Return invented sizes, because the tests check only the routing of requests."""
    return {
        policy.name: SizedPolicy(
            policy,
            assign(
                asked.workload.lengths,
                Inquiry(policy.tiers, policy.strategy, 1, asked.declared, 2000, 200),
                fill=False,
            ),
            [],
            [3] * len(policy.tiers),
            None,  # type: ignore[arg-type]  # nothing was simulated
            [],
            [True] * len(policy.tiers),
        )
        for policy in policies(asked)
        if policy.name in ("homogeneous-paged", "split")
    }


@pytest.fixture(scope="module")
def found(asked: Question, sized: dict[str, SizedPolicy]) -> FourWays:
    return four_ways(asked, sized["homogeneous-paged"], sized["split"], MOVED)


def test_every_way_has_its_gpus_and_every_pair_its_figures(found: FourWays) -> None:
    assert [way.name for way in found.ways] == [
        "one pool",
        "split",
        "disaggregated",
        "split and disaggregated",
    ]
    for way in found.ways[2:]:
        assert way.instances == sum(pair.prefill + pair.decode for pair in way.pairs)
        assert way.gpus == 2 * way.instances
        assert sum(pair.share_of_requests for pair in way.pairs) == pytest.approx(
            1, abs=0.01
        )
        for pair in way.pairs:
            assert pair.slo_met
            assert pair.p99_ttft_s is not None
            assert pair.mean_transfer_s is not None
            assert pair.mean_transfer_s > 10e-3
    assert [pair.name for pair in found.ways[3].pairs] == ["short", "long"]
    assert json.loads(json.dumps(asdict(found)))["verdict"] == found.verdict


def test_the_table_is_printed(
    found: FourWays, capsys: pytest.CaptureFixture[str]
) -> None:
    print_four_ways(found)
    said = capsys.readouterr().out
    assert "100 Gbit/s an instance, 98 KiB a token" in said
    for way in found.ways:
        assert way.name in said
    unkept = replace(
        found,
        ways=(
            replace(
                found.ways[2],
                slo_met=False,
                pairs=(replace(found.ways[2].pairs[0], p99_ttft_s=None),),
            ),
        ),
    )
    print_four_ways(unkept)
    said = capsys.readouterr().out
    assert "promise not kept" in said
    assert "no size that was tried keeps the promises" in said


@pytest.mark.parametrize(
    ("gpus", "kept", "said"),
    [
        (
            (100, 80, 70, 60),
            (1, 1, 1, 1),
            "takes 60 GPUs with split and disaggregated; one",
        ),
        (
            (100, 80, 79, 78),
            (1, 1, 1, 1),
            "takes 80 GPUs with split; one pool 100, dis",
        ),
        (
            (100, 80, 70, 60),
            (1, 1, 0, 0),
            "takes 80 GPUs with split; one pool 100, dis",
        ),
        ((100, 80, 70, 60), (0, 0, 0, 0), "No way meets the SLO"),
    ],
)
def test_the_fewest_gpus_that_keep_the_promises_are_named(
    gpus: tuple[int, ...], kept: tuple[int, ...], said: str
) -> None:
    names = ("one pool", "split", "disaggregated", "split and disaggregated")
    ways = tuple(
        Way(name, count, count, bool(met))
        for name, count, met in zip(names, gpus, kept, strict=True)
    )
    assert said in verdict(ways)
