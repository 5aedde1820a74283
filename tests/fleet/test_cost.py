"""The closed-form cost, and every number in the papers that can be derived exactly."""

import pytest

from extproc.fleet import cost


@pytest.mark.parametrize(
    ("short_fraction", "throughput_gain", "saving"),
    [
        pytest.param(0.80, 4, 0.600, id="azure, predicted 60.0 %"),
        pytest.param(0.68, 4, 0.510, id="lmsys, predicted 51.0 %"),
        pytest.param(1.0, 1, 0.0, id="no gain"),
        pytest.param(0.0, 9, 0.0, id="nothing short"),
        pytest.param(1.0, 0.5, -1.0, id="slower when short"),
    ],
)
def test_formula(short_fraction: float, throughput_gain: float, saving: float) -> None:
    assert cost.formula_saving(short_fraction, throughput_gain) == pytest.approx(saving)


def test_358_homogeneous_instances_at_1000_requests_a_second() -> None:
    assert cost.homogeneous(1000, 2.8) == 358


def test_formula_counts_are_144_and_176_where_the_papers_simulate_208_and_246() -> None:
    for short_fraction, expected in ((0.80, 144), (0.68, 176)):
        pools = [
            cost.Demand(1000 * short_fraction, 11.2),
            cost.Demand(1000 * (1 - short_fraction), 2.8),
        ]
        assert cost.split(pools) == expected


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [(358, 208, 41.9), (358, 246, 31.3), (1576, 1096, 30.5)],
)
def test_savings_stated(before: int, after: int, percent: float) -> None:
    assert round(100 * cost.saving(before, after), 1) == percent


def test_2_86_million_takes_a_year_of_8640_hours() -> None:
    saved = cost.usd_per_year(358 - 208, 1, 2.21, cost.HOURS_PER_TWELVE_MONTHS)
    assert round(saved / 1e6, 2) == 2.86
    assert round(cost.usd_per_year(150, 1, 2.21) / 1e6, 2) == 2.90


def test_15_4_million_takes_a_year_of_8760_hours() -> None:
    assert (1576, 1096) == (197 * 8, 137 * 8)
    assert round(cost.usd_per_year(197 - 137, 8, 3.67) / 1e6, 1) == 15.4
    assert round(cost.usd_per_year(197, 8, 3.67) / 1e6, 2) == 50.67
    assert round(cost.usd_per_year(137, 8, 3.67) / 1e6, 2) == 35.24


def test_5_4_times_fewer_preemptions_and_the_mix_that_alpha_0_8_gives() -> None:
    assert round(47.3 / 8.7, 1) == 5.4
    assert round(0.8 * 1.2 + 0.2 * 38.6, 2) == 8.68


def test_rounding_up_takes_no_instance_for_a_floating_point_hair() -> None:
    assert cost.Demand(0.3, 0.1).instances() == 3
    assert cost.Demand(0, 1).instances() == 0
    assert cost.Demand(10, 1).instances(max_utilization=0.9) == 12


@pytest.mark.parametrize(
    "call",
    [
        lambda: cost.formula_saving(1.1, 2),
        lambda: cost.formula_saving(0.5, 0),
        lambda: cost.Demand(1, 0).instances(),
        lambda: cost.Demand(1, 1).instances(1.5),
        lambda: cost.saving(0, 1),
    ],
)
def test_arguments_out_of_range_are_refused(call) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
