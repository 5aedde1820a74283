"""The command line: help, suggestions and closed pipes."""

import subprocess
import sys
from pathlib import Path

import pytest

import extproc
from extproc.cli import COMMANDS, main
from extproc.routing.arithmetic import COUNTED_BY

PROJECT = Path(__file__).parents[1]


def test_help_lists_the_commands_and_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for command, description in COMMANDS.items():
        assert command in out
        assert description.split()[0] in out
    assert "extproc explain request.json" in out
    assert max(map(len, out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    version = f"extproc {extproc.__version__} ({COUNTED_BY})\n"
    assert capsys.readouterr().out == version


STALE = """
import sys, types
for name in ("extproc.routing._kernel", "extproc.server.services._fast_decode"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].INTERFACE = 0
from extproc.server.services.fast_decode import fast_decode
from extproc.cli import main
main(["--version"])
"""


def test_extensions_of_an_older_source_are_not_used() -> None:
    """They stay in the folder if the source is updated and not installed again."""
    done = subprocess.run(
        [sys.executable, "-c", STALE], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout == f"extproc {extproc.__version__} (numpy)\n", done.stderr


@pytest.mark.parametrize(
    ("argument", "advice"),
    [("xplain", "did you mean 'explain'?"), ("qqq", "expected serve, ")],
)
def test_an_unknown_command_is_answered_with_advice(
    argument: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument]) == 2
    err = capsys.readouterr().err
    assert advice in err
    assert err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    reader = subprocess.Popen(
        [sys.executable, "-c", "pass"], stdin=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    reader.wait()
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "check-config"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    reader.stdin.close()


def test_a_module_of_an_extra_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    for name in [name for name in sys.modules if name.startswith("extproc.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "extproc.commands.demo", raising=False)

    assert main(["demo", "--count", "1"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "tiktoken is not installed; pip install 'token-budget-router[demo]'"
    )


def test_an_interrupt_while_a_command_is_imported_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("extproc.cli.importlib.import_module", interrupted)

    assert main(["demo"]) == 130
    assert capsys.readouterr().err == ""
