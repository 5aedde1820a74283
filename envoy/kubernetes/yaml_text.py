"""Change YAML as text, which keeps comments, and write values as YAML."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from extproc.commands.block_yaml import BlockDumper


def replace(text: str, old: str, new: str) -> str:
    """Replace a piece that occurs exactly once."""
    if text.count(old) != 1:
        raise ValueError(f"envoy.yaml: {old!r}; expected exactly once")
    return text.replace(old, new)


def cut(text: str, begin: str, end: str, new: str) -> tuple[str, str]:
    """Replace the piece from `begin` to `end`; return it and the new text."""
    before, found, rest = text.partition(begin)
    piece, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"envoy.yaml: expected {begin!r}, then {end!r}")
    return begin + piece, before + new + end + after


def indent(text: str, columns: int) -> str:
    """Indent each line that is not empty."""
    return "".join(
        f"{' ' * columns}{line}".rstrip() + "\n" for line in text.splitlines()
    )


def blocks(items: Iterable[object], columns: int) -> str:
    """Return a YAML list, indented."""
    return indent(document(list(items)), columns)


def document(value: object) -> str:
    """Return a value as YAML with one line for each innermost list or mapping."""
    return yaml.dump(
        value, Dumper=BlockDumper, sort_keys=False, width=1000, default_flow_style=None
    )
