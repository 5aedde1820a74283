"""The figures in each answer of the FAQ equal those on the pages that it links to."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.config import Config
from extproc.routing.byte_classes import CLASSES
from extproc.server.observe.recent import LAST_DECISIONS

FAQ = Path(__file__).parent.parent / "extproc/faq.md"
COMPARISON = FAQ.parent.parent / "envoy/comparison.md"


def answers() -> Iterator[tuple[str, str]]:
    """Return each question with its answer."""
    for section in FAQ.read_text(encoding="utf-8").split("\n### ")[1:]:
        question, _, answer = section.partition("\n")
        yield question, answer


ANSWERS = dict(answers())


def percentages(text: str) -> set[str]:
    """Return each number before a percent sign, including both ends of a range."""
    found = set()
    for low, high in re.findall(r"(?:([\d.]+) (?:to|and) )?([\d.]+) %", text):
        found |= {low, high} - {""}
    return found


@pytest.mark.parametrize("question", ANSWERS)
def test_every_percentage_is_on_a_page_that_the_answer_links_to(question: str) -> None:
    answer = ANSWERS[question]
    pages = "".join(
        (FAQ.parent / name).read_text(encoding="utf-8")
        for name in re.findall(r"\]\(([\w./-]+\.md)", answer)
    )

    missing = {
        number
        for number in percentages(answer)
        if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", pages)
    }
    assert missing == set()


def test_defaults_and_sizes_are_those_of_the_code() -> None:
    text = FAQ.read_text(encoding="utf-8")
    config = Config()

    for written in (
        f"`output.ceiling_tokens` ({config.output.ceiling_tokens:,})",
        f"`output.truncation_risk` ({config.output.truncation_risk:.1%}".replace(
            "%", " %)"
        ),
        f"`risk.under_estimate_rate` ({config.risk.under_estimate_rate:.0%}".replace(
            "%", " %)"
        ),
        f"the last {LAST_DECISIONS} decisions",
        f"{CLASSES} classes of bytes",
    ):
        assert written in text


def test_every_source_of_the_comparison_is_defined_and_used() -> None:
    text = COMPARISON.read_text(encoding="utf-8")
    defined = re.findall(r"^\[([A-Z]\d+)\]: https://\S+", text, re.MULTILINE)
    used = re.findall(r"(?<!^)\[([A-Z]\d+)\](?!:)", text)

    assert len(defined) == len(set(defined)) > 0
    assert set(used) == set(defined)
