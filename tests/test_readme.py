"""The README's tables are the code's: every setting, every metric, every command."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from extproc.cli import COMMANDS
from extproc.config import Config
from extproc.server.metrics import Metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Dotted keys of every setting that is not itself a mapping of settings."""
    for name, hint in get_type_hints(schema).items():
        inner = [a for a in (hint, *get_args(hint)) if dataclasses.is_dataclass(a)]
        is_list = inner and inner[0] is not hint and "tuple" in str(hint)
        if inner:
            yield from settings(inner[0], f"{prefix}{name}{'[]' if is_list else ''}.")
        else:
            yield prefix + name


def rows(heading: str) -> set[str]:
    """The first column of the table below a heading."""
    section = README.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    return set(re.findall(r"^\| `([^`]+)`", section, re.MULTILINE))


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    assert rows("## Configuration") == set(settings())


def test_every_metric_is_in_the_table_and_nothing_else() -> None:
    families = Metrics(dict, tuple, lambda: (0.01, 0.01)).registry.collect()
    exported = {
        f.name + ("_total" if f.type == "counter" else "")
        for f in families
        if f.name.startswith("extproc_")
    }

    assert rows("### Metrics") == exported


def test_every_command_is_named() -> None:
    for command in COMMANDS:
        assert f"extproc {command}" in README, command


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(r"`((?:envoy|extproc|protos|tests)/[\w./-]*)`", README))),
)
def test_every_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).exists()


def test_no_hole_is_left() -> None:
    assert not re.search(r"@[A-Z]+@", README)
