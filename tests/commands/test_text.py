"""Text is wrapped to the terminal, and every command's help fits in 80 columns."""

import pytest

from extproc.cli import COMMANDS, main
from extproc.commands.text import wrap


def test_paragraphs_are_filled_and_examples_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = (
        "One line that is long\nand goes on.\n\n  extproc an --example that stays\nEnd."
    )
    assert wrap(text) == (
        "One line that is\nlong and goes on.\n\n  extproc an --example that stays\nEnd."
    )


def test_options_are_not_broken_at_their_hyphens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    assert wrap("takes --max-model-len") == "takes\n--max-model-len"


def test_lines_do_not_grow_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, wrap("word " * 100).splitlines())) <= 100


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_80_columns(
    command: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
