"""YAML parser that rejects duplicate keys in a mapping.

PyYAML silently keeps only the last of two equal keys. If a file had two ``pools``
sections, PyYAML would ignore the first section.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A mapping contains a key twice."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # A merge key (`<<`) may repeat, because its values are overridden, not
            # lost.
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
        yaml.YAMLError: the text is not YAML, or a mapping contains a key twice.
    """
    return yaml.load(text, Loader=_Loader)
