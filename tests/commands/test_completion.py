"""Completion in real bash, zsh and fish shells."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from extproc.cli import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["extproc", "expl"], {"explain"}),
        (["extproc", "--v"], {"--version"}),
        (["extproc", "explain", "--ser"], {"--server"}),
        (["extproc", "explain", "--path", "/v1/emb"], {"/v1/embeddings"}),
        (["extproc", "completion", ""], {"bash", "zsh", "fish", "--help", "-h"}),
        (["extproc", "serve", "--config", "x"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bash_completes(
    words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = (
        f"{script('bash', capsys)}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _extproc; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", ask, "bash", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell}")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("extproc expl", {"explain"}),
        ("extproc --v", {"--version"}),
        ("extproc explain --ser", {"--server"}),
        ("extproc explain --path /v1/emb", {"/v1/embeddings"}),
        ("extproc completion ", {"bash", "fish", "zsh"}),
        ("extproc plan --workload azure-c", {"azure-code", "azure-conv"}),
        ("extproc serve --config {file}", {"{file}.yaml"}),
        ("extproc explain {file}", {"{file}.yaml"}),
    ],
)
def test_fish_completes(
    typed: str, expected: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needs("fish")
    (tmp_path / "name.yaml").touch()
    file = str(tmp_path / "name")
    (tmp_path / "extproc.fish").write_text(script("fish", capsys))
    ask = f"source {tmp_path}/extproc.fish; complete -C {shlex.quote(typed.format(file=file))}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", ask],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.stderr == ""
    found = {line.partition("\t")[0] for line in done.stdout.splitlines()}
    assert found == {each.format(file=file) for each in expected}


def test_fish_tells_what_a_word_is(capsys: pytest.CaptureFixture[str]) -> None:
    """No description is truncated between an opening and a closing bracket."""
    for line in script("fish", capsys).splitlines():
        description = shlex.split(line)[-1]
        assert description.count("(") == description.count(")"), line


def test_fish_offers_files_beside_the_names_of_workloads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = script("fish", capsys).splitlines()
    (plan,) = [line for line in lines if "plan" in line and "-l workload" in line]
    assert " -r -a 'azure-code" in plan  # -x would exclude files
    (serve,) = [line for line in lines if "serve" in line and "-l config" in line]
    assert " -r" in serve


class Zsh:
    """An interactive zsh on its own terminal, with the completion loaded."""

    def __init__(self, folder: Path, completion: str) -> None:
        self._buffer = folder / "buffer"
        ready = folder / "ready"
        (folder / "completion").write_text(completion)
        # An extra key binding prints the current command line.
        (folder / ".zshrc").write_text(
            f"""
            autoload -U compinit && compinit -u -D
            source {folder}/completion
            tell() {{ print -r -- "$BUFFER" > {self._buffer}; }}
            zle -N tell
            bindkey '^T' tell
            print > {ready}
            """
        )
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "zsh", "-i"],
            stdin=end,
            stdout=end,
            stderr=end,
            env=os.environ | {"ZDOTDIR": str(folder), "TERM": "dumb"},
        )
        os.close(end)
        self._wait_for(ready)

    def complete(self, typed: str) -> str:
        """Type a text, press Tab, and return the completed line."""
        self._buffer.unlink(missing_ok=True)
        os.write(self._terminal, f"\x15{typed}\t\x14".encode())
        self._wait_for(self._buffer)
        return self._buffer.read_text().rstrip("\n")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _wait_for(self, file: Path) -> None:
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < deadline, f"zsh wrote no {file.name}"
            if select.select([self._terminal], [], [], 0.01)[0]:
                os.read(self._terminal, 65536)


def test_zsh_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    needs("zsh")
    (tmp_path / "name.yaml").touch()
    zsh = Zsh(tmp_path, script("zsh", capsys))
    try:
        for typed, expected in (
            ("extproc expl", "extproc explain "),
            ("extproc --v", "extproc --version "),
            ("extproc explain --ser", "extproc explain --server "),
            (
                "extproc explain --path /v1/emb",
                "extproc explain --path /v1/embeddings ",
            ),
            ("extproc completion z", "extproc completion zsh "),
            ("extproc plan --workload lm", "extproc plan --workload lmsys "),
            (
                f"extproc serve --config {tmp_path}/na",
                f"extproc serve --config {tmp_path}/name.yaml ",
            ),
        ):
            assert zsh.complete(typed) == expected
    finally:
        zsh.close()


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["completion", "cmd"])
    assert refused.value.code == 2
    assert "bash" in capsys.readouterr().err
