"""Arguments that `extproc demo` rejects before it starts anything."""

import tempfile
from pathlib import Path

import pytest

from extproc.cli import main


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the folder of logs into the test's folder, because it remains after a
    failure.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(
    "content", [None, "", "not JSON\n"], ids=["missing", "empty", "broken"]
)
def test_a_file_that_is_none_is_named(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["demo", "--requests", str(file)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"extproc: --requests: {file}: ")
    assert errors.count("\n") == 1
    assert "[Errno" not in errors


@pytest.mark.parametrize("count", ["0", "-3", "many"])
def test_a_count_is_a_positive_number(
    count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--count", count])
    assert caught.value.code == 2
    assert "--count" in capsys.readouterr().err


def test_without_a_vllm_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--vllm", "--vllm-python", "/nowhere/python"]) == 1
    assert "/nowhere/python has no vllm" in capsys.readouterr().err


def test_without_a_configuration_for_envoy_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.yaml"
    assert main(["demo", "--envoy-config", str(file)]) == 2
    said = capsys.readouterr().err
    assert said == f"extproc: --envoy-config: {file}: No such file or directory\n"
