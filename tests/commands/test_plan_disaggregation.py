"""Combinations that `plan --disaggregate` rejects before it simulates anything."""

from pathlib import Path

import pytest

from extproc.cli import main


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--step-time", "paper"), "--disaggregate: no model's KV cache is known; ex"),
        (("--kv-transfer-gbits", "0"), "--kv-transfer-gbits: 0; expected > 0"),
    ],
)
def test_what_cannot_be_sized_apart_is_refused(
    given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--disaggregate", *given]) == 2
    assert capsys.readouterr().err.startswith(f"extproc plan: {message}")


def test_a_files_own_instants_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    rows = [f"{second},700,30" for second in range(600)]
    path.write_text("time,prompt_tokens,output_tokens\n" + "\n".join(rows))
    assert main(["plan", "--disaggregate", "--workload", str(path)]) == 2
    assert "--disaggregate: the instants of a file; expected" in capsys.readouterr().err
