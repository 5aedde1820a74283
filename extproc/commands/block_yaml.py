"""A YAML writer for files that people read."""

import yaml


class BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeated values without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


BlockDumper.add_representer(str, _represent)
