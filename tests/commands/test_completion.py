"""Completion as the shells themselves do it."""

import shutil
import subprocess

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


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_theirs(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    assert "explain" in text
    assert "--server" in text or "-l server" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here to check it with")
    subprocess.run([shell, "-n", "-c", text], check=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["completion", "cmd"])
    assert refused.value.code == 2
    assert "bash" in capsys.readouterr().err
