"""The sections of a plan's page on prefix caching, disaggregated decode, and energy."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from extproc.commands.plan_text import print_prefixes
from extproc.fleet.energy import Energy, Range
from extproc.fleet.energy_rows import EnergyRow, EnergyRows
from extproc.fleet.four_ways import FourWays, Pair, Way
from extproc.fleet.plan_document import Plan
from extproc.fleet.prefix_study import PrefixHits, PrefixStudy
from extproc.fleet.report_asked import asked_sections

ENERGY = Energy(
    1.0,
    Range(1.0, 1.5, 2.0),
    Range(9e6, 1e7, 1.2e7),
    Range(2.0, 2.5, 3.0),
    Range(3e6, 4e6, 5e6),
)
PAIR = Pair("<all>", 1.0, 31, 12, False, 1.25, None, 0.034, 0.8, 20.0)


@dataclass
class Asked:
    """The part of a plan that these sections show."""

    prefix_caching: PrefixStudy | None = None
    disaggregation: FourWays | None = None
    energy: EnergyRows | None = None


def sections(**asked: Any) -> dict[str, str]:
    plan = cast("Plan", Asked(**asked))
    return {title: "".join(content) for title, content in asked_sections(plan)}


def test_what_was_not_asked_for_has_no_section() -> None:
    assert sections() == {}


def test_prefix_caching_says_what_it_saves_and_what_the_split_does_to_it() -> None:
    study = PrefixStudy(
        0.82,
        0.78,
        {"a": 2000, "b": 1500, "c": 1400, "d": 1100},
        [PrefixHits("split", (3, 5), "prefix", 0.687, (0.7, 0.6), 4.7)],
    )
    (text,) = sections(prefix_caching=study).values()
    for part in ("2,000 instances without", "1,500 with it", "1,400 and 1,100"):
        assert part in text
    for part in ("82.0%", "78.0%", "split, prefix", "3 + 5", "68.7%", "4.70 s"):
        assert part in text


def test_reported_counts_say_nothing_of_the_split_or_of_load_balancers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hits = [PrefixHits("one pool", (8,), "least-request", 0.59, (0.59,), 4.7)]
    counts = {"a": 20, "b": 15, "c": 14, "d": 11}
    study = PrefixStudy(0.6, 0.6, counts, hits, reported=True)
    (page,) = sections(prefix_caching=study).values()
    print_prefixes(study)
    for text in (page, capsys.readouterr().out):
        assert "found in a cache by the usage" in " ".join(text.split())
        assert "outgrows" not in text


def test_each_way_has_its_pairs_and_whether_its_promises_are_kept() -> None:
    ways = (Way("one pool", 52, 416, True), Way("apart", 43, 344, False, (PAIR,)))
    found = FourWays(ways, 12.5e9, 320 * 1024, "One pool & no other.")
    (text,) = sections(disaggregation=found).values()
    for part in ("100 Gbit/s", "320 KiB", "One pool &amp; no other.", "416", "344"):
        assert part in text
    for part in ("&lt;all&gt;", "31 + 12", "1.25 s", "34 ms", "<td>-</td>"):
        assert part in text
    assert text.count("kept") == 1
    assert text.count("missed</span>") == 2


@pytest.mark.parametrize("measured", [True, False])
def test_energy_is_a_range_with_the_source_of_its_curve(measured: bool) -> None:
    row = EnergyRow("today", 2456, 311.4, 0.03, 0.5, 0.47, ENERGY)
    found = EnergyRows((row,), "Against today.", "a curve", measured)
    (text,) = sections(energy=found).values()
    for part in (
        "2,456",
        "311",
        "3.0%",
        "9.00 to 12.0",
        "2.00 to 3.00",
        "3,000 to 5,000",
    ):
        assert part in text
    assert ("not measured on this GPU" in text) is not measured
