"""Axes have round ticks, and drawings are well formed."""

import re
from xml.etree import ElementTree

import pytest

from extproc.fleet.charts import Axis, Bar, Chart, Series, bar_chart


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0, 100), [0, 20, 40, 60, 80, 100]),
        (Axis("", 0, 7), [0, 2, 4, 6]),
        (Axis("", -3, 12), [0, 5, 10]),
        (Axis("", 1024, 16_384, log=True), [1024, 2048, 4096, 8192, 16_384]),
        (Axis("", 0.01, 20, log=True), [0.01, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_shares_are_linear_or_logarithmic_and_clipped() -> None:
    assert Axis("", 0, 10).share(2.5) == 0.25
    assert Axis("", 1, 100, log=True).share(10) == pytest.approx(0.5)
    assert Axis("", 0, 1).share(7) == 1


def test_a_chart_is_well_formed_and_escapes_its_titles() -> None:
    chart = Chart(Axis("a < b", 0, 1), Axis("c & d", 0, 1))
    chart.add(Series('"quoted"', [(0, 0), (1, 1)], "a", dashed=True))
    chart.add(Series("", [(0, 0), (1, 1)], "b", filled=True))
    chart.mark(0.5, "half")
    chart.level(0.5, "half > none")
    drawn = ElementTree.fromstring(chart.svg())
    assert "a < b" in "".join(drawn.itertext())
    legend = ElementTree.fromstring(chart.legend().replace("class=legend", ""))
    assert [item.text or item[0].tail for item in legend] == ['"quoted"', "half > none"]
    styles = [item[0].attrib["style"] for item in legend]
    assert "dashed var(--a)" in styles[0]
    assert "dotted" in styles[1]


def test_a_chart_without_titles_has_no_legend() -> None:
    assert Chart(Axis("x", 0, 1), Axis("y", 0, 1)).legend() == ""


def test_the_longest_bar_is_the_largest() -> None:
    drawn = bar_chart([Bar("x", 10, "a"), Bar("y", 40, "b", "a < b")])
    widths = [float(width) for width in re.findall(r"width: ([0-9.]+)%", drawn)]
    assert widths == [25, 100]
    assert "a &lt; b" in drawn
