"""Energy of each policy in a small plan, and its options."""

import argparse
from dataclasses import asdict, replace

import pytest

from extproc.commands.plan import add_arguments
from extproc.commands.plan_energy import (
    check_energy,
    energy,
    print_energy,
)
from extproc.commands.traffic_options import OptionError
from extproc.fleet.assignment import Inquiry, assign
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import (
    PoolHardware,
    Question,
    policies,
)
from extproc.fleet.sizing import Engine
from extproc.fleet.steptime import Linear

from .questions import small_question

ENGINE = Engine("toy", Linear(5e-3, 2e-4, 1e-5, 1e-8), 4800, 16, 2, 1.5)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture(scope="module")
def asked() -> Question:
    return small_question("lmsys", ENGINE, 20, tried_requests=1200)


@pytest.fixture(scope="module")
def sized(asked: Question) -> dict[str, SizedPolicy]:
    """Return invented sizes: eight instances in one pool, or four in two pools."""
    counts = {"homogeneous-worst-case": [8], "split": [3, 1]}
    return {
        policy.name: SizedPolicy(
            policy,
            assign(
                asked.workload.lengths,
                Inquiry(policy.tiers, policy.strategy, 1, asked.declared, 2000, 200),
                fill=False,
            ),
            [],
            counts[policy.name],
            None,  # type: ignore[arg-type]  # nothing was simulated
            [],
            [True],
        )
        for policy in policies(asked)
        if policy.name in counts
    }


def test_a_pool_with_another_gpu_draws_by_its_own_curve(
    asked: Question, sized: dict[str, SizedPolicy]
) -> None:
    args = arguments("--energy", "--pool-gpu", "long=H100-80GB")
    own = PoolHardware(replace(ENGINE, gpus=1), 256, asked.max_num_batched_tokens)
    mixed = replace(asked, pool_hardware={"long": own})
    before, after = energy(args, mixed, sized).rows
    short, long = sized["split"].instances
    assert before.gpus == ENGINE.gpus * sized["homogeneous-worst-case"].total
    assert after.gpus == ENGINE.gpus * short + long
    alike = energy(arguments("--energy"), mixed, sized).rows[1]
    assert after.watts_per_gpu > alike.watts_per_gpu
    source = energy(args, mixed, sized).source
    assert "arXiv 2507.00418" in source
    assert "ML.ENERGY" in source


def test_fewer_gpus_save_less_power_than_gpus(
    asked: Question,
    sized: dict[str, SizedPolicy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = arguments("--energy", "--pue", "1.2", "--grid-g-per-kwh", "400")
    found = energy(args, asked, sized)
    before, after = found.rows
    assert (before.gpus, after.gpus) == (16, 8)
    for row in found.rows:
        assert row.idle + row.decode + row.prefill == pytest.approx(1)
        assert row.energy.kwh_per_year.low < row.energy.kwh_per_year.high
    assert after.watts_per_gpu > before.watts_per_gpu
    assert 0.5 < after.energy.gpu_megawatts / before.energy.gpu_megawatts < 1
    kwh, kg = before.energy.kwh_per_year, before.energy.kg_co2_per_year
    assert kg.middle == pytest.approx(0.4 * kwh.middle)
    assert asdict(found)["rows"][0]["energy"]["megawatts"]["low"] > 0
    assert "split: -50% GPUs, -" in found.relation
    print_energy(found)
    said = capsys.readouterr().out
    assert "homogeneous-worst-case" in said
    assert "arXiv 2507.00418" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--energy", "--profile", "p.json"), "--energy: a profile has no GPU name"),
        (("--pue", "0.9"), "--pue: 0.9; expected >= 1"),
        (("--grid-g-per-kwh", "-1"), "--grid-g-per-kwh: -1; expected >= 0"),
    ],
)
def test_what_gives_no_energy_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_energy(arguments(*given))
