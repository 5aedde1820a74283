"""The documentation's tables match the code, and everything the documentation names
exists.
"""

import argparse
import dataclasses
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from prometheus_client import CollectorRegistry

import extproc
from extproc.cli import COMMANDS
from extproc.config import Config, load_config
from extproc.exchange.openai import ENDPOINTS
from extproc.exchange.paths import UNREAD
from extproc.routing.policy import Reason
from extproc.server.build import build_generation
from extproc.server.in_force import InForce
from extproc.server.learned.document import NAME
from extproc.server.observe.connections import ConnectionMetrics
from extproc.server.observe.gauges import InForceCollector
from extproc.server.observe.metrics import Metrics
from extproc.server.workers.merge import MergedMetrics

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (".", ".github", "envoy", "extproc")
    for path in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
}
README = PAGES["README.md"]
OPERATING = PAGES["extproc/server/README.md"]
PERFORMANCE = PAGES["extproc/server/performance.md"]
ALERTS = yaml.safe_load((ROOT / "envoy/observability/rules.yml").read_text())
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)


def settings(schema: Any = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the default of each setting that is not a mapping."""
    hints = get_type_hints(schema)
    for setting in dataclasses.fields(schema):
        hint = hints[setting.name]
        inner = [a for a in (hint, *get_args(hint)) if dataclasses.is_dataclass(a)]
        is_list = inner and inner[0] is not hint and "tuple" in str(hint)
        name = prefix + setting.name
        if prefix.startswith("models.") or get_origin(hint) is Mapping:
            inner = inner if get_origin(hint) is Mapping else []
            name = f"{name}.NAME" if inner else name
        if any(get_origin(option) is Literal for option in get_args(hint)):
            inner = []  # either a word or a mapping
        if inner:
            yield from settings(inner[0], f"{name}{'[]' if is_list else ''}.")
        else:
            yield name, show(setting.default)


def show(default: Any) -> str:
    match default:
        case dataclasses.MISSING:
            return "required"
        case None:
            return "unset"
        case ():
            return "none"
        case StrEnum():
            return str(default)
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
    return str(default)


SETTINGS = dict(settings())


def restarts(schema: Any = Config, prefix: str = "", whole: bool = False) -> set[str]:
    """Return the dotted keys of all settings that need a restart to take effect."""
    hints = get_type_hints(schema)
    found = set()
    for setting in dataclasses.fields(schema):
        marked = whole or bool(setting.metadata.get("restart"))
        hint = hints[setting.name]
        inner = [a for a in (hint, *get_args(hint)) if dataclasses.is_dataclass(a)]
        if inner:
            found |= restarts(inner[0], f"{prefix}{setting.name}.", marked)
        elif marked:
            found.add(prefix + setting.name)
    return found


def metrics() -> dict[str, str]:
    state = InForceCollector(InForce(build_generation(Config())))
    connections = CollectorRegistry()
    ConnectionMetrics(connections)
    own = [
        *Metrics().registry.collect(),
        *connections.collect(),
        *state.collect(),
    ]
    return {
        f.name + ("_total" if f.type == "counter" else ""): f.documentation
        for f in (*own, *MergedMetrics(1).collect())
        if f.name.startswith("extproc_")
    }


def rows(page: str, heading: str) -> list[list[str]]:
    """Return those table rows below a heading whose first cell is code."""
    section = page.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = re.findall(r"^\| (`.+) \|$", section, re.MULTILINE)
    return [line.split(" | ") for line in lines]


def code(page: str) -> list[str]:
    """Return the inline code and the lines of code blocks on a page."""
    text = PAGES[page]
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [*lines, *indented, *re.findall(r"`([^`\n]+)`", text)]


def test_every_setting_is_in_the_table_with_its_default_and_nothing_else() -> None:
    table = {
        name.strip("`"): default for name, default, _ in rows(OPERATING, "## Settings")
    }

    assert {name: default.strip("`") for name, default in table.items()} == SETTINGS


def test_settings_that_take_a_restart_are_marked() -> None:
    marked = {
        name.strip("`")
        for name, _, text in rows(OPERATING, "## Settings")
        if text.endswith("(restart)")
    }

    assert marked == restarts()


def test_every_metric_is_in_the_table_and_nothing_else() -> None:
    table = {name.strip("`"): text for name, text in rows(OPERATING, "## Metrics")}

    assert table == metrics()


def test_every_api_is_in_the_table_and_nothing_else() -> None:
    read = {
        path: columns[1] == "yes"
        for columns in rows(OPERATING, "## APIs and paths")
        for path in re.findall(r"`([^`]+)`", columns[0])
    }

    assert read == dict.fromkeys(ENDPOINTS, True) | dict.fromkeys(UNREAD, False)


def test_every_alert_has_its_advice() -> None:
    (group,) = ALERTS["groups"]
    advised = re.findall(r"`(TokenBudgetRouter\w+)`", OPERATING)

    assert sorted(advised) == sorted(rule["alert"] for rule in group["rules"])


def test_every_reason_of_a_decision_is_explained() -> None:
    for reason in Reason:
        assert f"`{reason}`" in PAGES["extproc/routing/README.md"]


def test_every_command_is_named() -> None:
    for command in COMMANDS:
        assert any(f"extproc {command}" in text for text in PAGES.values()), command


@EVERY_PAGE
def test_every_command_line_is_accepted(page: str) -> None:
    for text in code(page):
        if not text.startswith("extproc "):
            continue
        words = shlex.split(text, comments=True)[1:]
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, text
        module = importlib.import_module(
            f"extproc.commands.{words[0].replace('-', '_')}"
        )
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known = {flag for action in parser._actions for flag in action.option_strings}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, text


@EVERY_PAGE
def test_every_target_of_make_is_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in code(page):
        if text.startswith("make "):
            words = text.partition("#")[0].split()[1:]
            targets = [word for word in words if "=" not in word]
            for target in targets[:1] if "=" in text else targets:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), text


@EVERY_PAGE
def test_every_file_that_is_named_exists(page: str) -> None:
    folder = (ROOT / page).parent
    suffix = r"(?:py|md|ya?ml|json|html|conf|lua|proto|toml)"
    for text in code(page):
        for name in re.findall(rf"^[\w./-]+\.{suffix}$|^[\w./-]+/$", text):
            if name.startswith(("/", "x-")) or name in OF_THE_READER:
                continue
            here = (folder / name).exists() or (ROOT / name).exists()
            assert here or name in FILE_NAMES, f"{page}: {name}"
        for name in re.findall(IN_THE_PROJECT, text):
            assert (ROOT / name).exists(), f"{page}: {text}"


FILE_NAMES = {path.name for path in (ROOT / "tests").rglob("*.py")}
IN_THE_PROJECT = r"(?<![\w/.-])(?:envoy|extproc|protos|tests)/[\w./-]+"
OF_THE_READER = {"kustomization.yaml", "dist/", "apply/", "recording.jsonl", NAME}
"""Files that the reader already has or creates."""


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub derives from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@EVERY_PAGE
def test_every_link_leads_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@EVERY_PAGE
def test_every_setting_and_metric_that_is_named_exists(page: str) -> None:
    known_metrics = metrics()
    sections = {name.partition(".")[0] for name in SETTINGS if "." in name}
    prefixes = {name.rpartition(".")[0] for name in SETTINGS if "." in name}
    for text in code(page):
        for name in re.findall(r"\bextproc_[a-z_]+\b", text):
            assert name in known_metrics, f"{page}: {name}"
        setting = re.match(r"^([a-z]+)(?:\[\])?\.[a-z_.]+(?=$|: )", text)
        if setting and setting[1] in sections and not text.endswith(SUFFIXES):
            name = setting[0]
            known = name in SETTINGS or name in prefixes or is_value_of_chart(name)
            assert known, f"{page}: {text}"


SUFFIXES = (".py", ".md", ".yaml")


def is_value_of_chart(name: str) -> bool:
    found = yaml.safe_load(
        (ROOT / "envoy/helm/token-budget-router/values.yaml").read_text()
    )
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True


@EVERY_PAGE
def test_no_hole_is_left(page: str) -> None:
    assert not re.search(r"@[A-Z]+@", PAGES[page])


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+\.md)", README))

    assert set(PAGES) - {"README.md"} == linked


def numbers(text: str) -> set[tuple[str, ...]]:
    """Return the table rows that contain only numbers after the first cell."""
    found = set()
    for line in re.findall(r"^\|(.+)\|$", text, re.MULTILINE):
        cells = [
            re.fullmatch(r"\*{0,2}(-?[\d.,]+)\*{0,2}( %)?( \(.+\))?", cell.strip())
            for cell in line.split("|")[1:]
        ]
        if all(cells):
            found.add(tuple(cell[1] for cell in cells if cell))
    return found


def test_the_readme_s_plans_are_those_of_the_page() -> None:
    section = README.split("## What it saves", 1)[1].split("\n## ", 1)[0]
    page = PAGES["extproc/fleet/README.md"].split("### The public traces", 1)[1]

    shown = numbers(section)
    assert len(shown) == 3
    assert shown <= numbers(page)


def test_the_readme_s_cost_is_that_of_the_page() -> None:
    (said,) = re.findall(r"(\d+) us of CPU a request and ([\d.]+) ms", README)
    (row,) = re.findall(
        r"\(default\) \| (\d+) us \| [\d.]+ \| ([\d.]+) ms", PERFORMANCE
    )
    assert said == row


def test_the_readme_s_errors_are_those_of_the_page() -> None:
    page = PAGES["extproc/routing/README.md"]
    for what in ("mean error", "above the bound at the 1 % setting"):
        (row,) = re.findall(rf"^\| {what}, % \| (.+) \|$", page, re.MULTILINE)
        each = sorted(map(float, row.split(" | ")))
        assert f"{each[0]} to {each[-1]} % {what}" in README


def test_the_throughput_is_that_of_the_results() -> None:
    results = (ROOT / "tests/benchmarks/results.md").read_text()
    (said,) = re.findall(
        r"takes (\d+) us .* ([\d,]+) requests a second with one worker, ([\d,]+) with two",
        PERFORMANCE,
    )
    one, two = re.findall(
        r"^\| native \| [12] \| (\d+) \| (\d+) ", results, re.MULTILINE
    )
    assert said == (one[1], f"{int(one[0]):,}", f"{int(two[0]):,}")


def test_the_readme_is_one_screen_and_a_bit() -> None:
    assert len(README.splitlines()) <= 120


def test_the_changelog_s_newest_version_is_the_package_s() -> None:
    versions = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$",
        PAGES["extproc/CHANGELOG.md"],
        re.MULTILINE,
    )
    assert versions[0] == extproc.__version__
    assert "## [Unreleased]" in PAGES["extproc/CHANGELOG.md"]


def test_the_configuration_that_is_shown_is_accepted() -> None:
    (text,) = re.findall(r"^ *```yaml\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
    text = textwrap.dedent(text)

    assert [pool.name for pool in load_config(text, {}).pools] == ["short", "long"]


def test_the_library_s_example_runs() -> None:
    page = PAGES["extproc/README.md"]
    (text,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {
        "body": b'{"messages": [{"role": "user", "content": "A question."}]}'
    }
    exec(text, names)

    assert names["decision"].pool.name == "short"
    assert names["router"].ratios.all() != {}
