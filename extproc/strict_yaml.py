"""YAML whose mappings name each key once.

PyYAML keeps the last of two equal keys without a word, so that of two blocks ``pools``
the first would be ignored.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A mapping names a key twice."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # A merge key (`<<`) may repeat: its mappings are overridden, not lost.
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise DuplicateKeyError(
                        f"key {key.value!r} in lines {lines[key.value]} and {line}; "
                        "expected once"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """Read one YAML document with the safe loader.

    Raises:
        yaml.YAMLError: not YAML, or a mapping names a key twice.
    """
    return yaml.load(text, Loader=_Loader)
