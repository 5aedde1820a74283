"""The rules for English in .github/CONTRIBUTING.md that a program can check."""

import argparse
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.cli import COMMANDS

ROOT = Path(__file__).parents[1]
NAMES_IN_CAPITALS = r"[A-Z]{2}|P99\b|Python\b|Llama-|Envoy\b|KV\b|GPUs\b"
"""Names and acronyms, with which a help text may begin in upper case."""
PREPOSITIONS = "about above as at below beside by for from in into of on than to with"
TEXT = r"\.(py|md|ya?ml|proto|toml)$"


def helps() -> Iterator[tuple[str, str]]:
    """Yield every option of every command with its help text."""
    for command in COMMANDS:
        module = importlib.import_module(
            f"extproc.commands.{command.replace('-', '_')}"
        )
        parser = argparse.ArgumentParser(prog=command)
        module.add_arguments(parser)
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                name = action.option_strings[-1] if action.option_strings else ""
                yield f"{command} {name or action.dest}", action.help or ""
    yield from COMMANDS.items()


HELPS = dict(helps())


@pytest.mark.parametrize("option", HELPS)
def test_a_help_text_is_a_phrase(option: str) -> None:
    text = HELPS[option]
    phrase = re.sub(r" \(default: .*\)$", "", text)

    assert re.match(rf"[a-z]|{NAMES_IN_CAPITALS}", text), text
    assert not text.endswith("."), text
    assert phrase.split()[-1] not in PREPOSITIONS.split(), text
    assert phrase.split()[0] not in PREPOSITIONS.split(), text


@pytest.mark.parametrize("option", HELPS)
def test_a_default_is_in_brackets_at_the_end(option: str) -> None:
    text = HELPS[option]

    assert not re.search(r"\bdefault\b", text) or re.search(
        r" \(default: .+\)$", text
    ), text


def lines() -> Iterator[tuple[str, str]]:
    """Yield the place and text of every line of the project, except in this file."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout: git lists no files")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if re.search(TEXT, name) and path != Path(__file__) and path.exists():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield f"{name}:{number}", line


def test_words_that_have_a_term_of_the_field_are_rare() -> None:
    pattern = r"(?i)\b(told|whoever|anew|octets?|of late)\b"
    found = [f"{at}: {line}" for at, line in lines() if re.search(pattern, line)]

    assert len(found) < 10, "\n".join(found)


def test_clauses_without_a_noun_are_absent() -> None:
    pattern = r"of our[s]|that is non[e]|to who[m]|is asked fo[r]|seen workin[g]"
    found = [f"{at}: {line}" for at, line in lines() if re.search(pattern, line)]

    assert found == []
