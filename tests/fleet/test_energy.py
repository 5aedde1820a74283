"""Power of an instance from its steps, and power of a fleet as a range."""

import numpy as np
import pytest

from extproc.fleet.energy import (
    POWER_CURVES,
    Draw,
    Load,
    Range,
    fleet_energy,
    watch,
)
from extproc.fleet.gpus import GPUS
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import Linear
from extproc.fleet.workload import Recorded, RenewalArrivals

A100, H100 = POWER_CURVES["A100-80GB"], POWER_CURVES["H100-80GB"]
LIMITS = SchedulerLimits(64, 512, 4096, 4000)
STEP = Linear(base_s=10e-3, seq_s=1e-4, token_s=2e-5)
CHAT = Recorded(np.array([400]), np.array([100]))


def test_every_gpu_has_a_curve_with_a_source() -> None:
    assert set(POWER_CURVES) == set(GPUS)
    for curve in POWER_CURVES.values():
        assert curve.source
        assert curve.idle_w < curve.low_w < curve.high_w
        assert curve.watts(1) < curve.watts(16) < curve.watts(512) < curve.high_w


def test_the_curves_meet_what_was_measured() -> None:
    """Compare with published power: A100 in arXiv 2507.00418 (373 W per GPU at a batch
    of 32), and H100 in ML.ENERGY.
    """
    assert A100.watts(32) == pytest.approx(373, rel=0.02)
    assert H100.watts(1) == pytest.approx(300, rel=0.02)
    assert H100.watts(128) == pytest.approx(600, rel=0.04)


def test_power_falls_less_than_instances_do() -> None:
    """Power falls by only 21 % if the number of instances falls by 26 %.

    At first there are 307 instances with 16.3 running requests each, and then 227
    instances with 32.0 running requests each.
    """
    before, after = 307 * A100.watts(16.3), 227 * A100.watts(32.0)
    assert pytest.approx(-0.26, abs=0.005) == 227 / 307 - 1
    assert after / before - 1 == pytest.approx(-0.21, abs=0.005)


def draw(rate: float) -> Draw:
    return watch(LIMITS, STEP, RenewalArrivals(rate), CHAT, A100, 1, requests=600)


def test_time_is_idle_decoding_or_prefilling() -> None:
    found = draw(2.0)
    assert found.idle + found.decode + found.prefill == pytest.approx(1)
    # Two prompts arrive per second. Each prompt is computed in one step of about 400
    # tokens, which takes about 19 ms.
    assert found.prefill == pytest.approx(2 * 18.5e-3, rel=0.15)
    assert found.output_tokens_per_s == pytest.approx(200, rel=0.1)
    assert A100.idle_w < found.watts < A100.high_w


def test_an_idle_instance_draws_its_idle_power() -> None:
    assert draw(0.002).watts == pytest.approx(A100.idle_w, rel=0.05)


def test_the_same_work_on_fewer_instances_takes_less_power_and_more_each() -> None:
    few, many = draw(20.0), draw(5.0)
    assert few.watts > many.watts
    assert few.watts < 4 * many.watts
    fleets = [
        fleet_energy([Load(8 * count, 8, one)]) for count, one in ((1, few), (4, many))
    ]
    assert fleets[0].kwh_per_year.middle < fleets[1].kwh_per_year.middle
    assert fleets[0].joules_per_token.middle < 0.7 * fleets[1].joules_per_token.middle


def test_a_fleet_is_boards_hosts_and_cooling() -> None:
    one = Draw(400.0, 0.0, 0.9, 0.1, 1000.0)
    found = fleet_energy(
        [Load(16, 8, one), Load(8, 8, one)],
        host_watts=Range(100, 100, 100),
        pue=Range(1.5, 1.5, 1.5),
        grid_g_per_kwh=Range(100, 100, 100),
    )
    assert found.gpu_megawatts == pytest.approx(24 * 400 / 1e6)
    assert found.megawatts.middle == pytest.approx(24 * 500 * 1.5 / 1e6)
    assert found.megawatts.low == pytest.approx((24 * 360 + 2400) * 1.5 / 1e6)
    assert found.kwh_per_year.middle == pytest.approx(18.0 * 8760)
    assert found.joules_per_token.middle == pytest.approx(18_000 / 3000)
    assert found.kg_co2_per_year.middle == pytest.approx(18.0 * 8760 * 0.1)
    usual = fleet_energy([Load(16, 8, one)])
    assert usual.megawatts.low < usual.megawatts.middle < usual.megawatts.high


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0, 0.01234, "0 to 0.0123"),
        (9.996, 1234567.0, "10.00 to 1,230,000"),
        (-2.5, 370.0, "-2.50 to 370"),
    ],
)
def test_a_range_is_written_with_three_digits(
    low: float, high: float, text: str
) -> None:
    assert str(Range(low, 0.0, high)) == text
