from pathlib import Path

import pytest
import yaml

from extproc.cli import main
from extproc.config import ENVIRONMENT, Config, as_document, load_config


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "extproc.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_defaults_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"]) == 0

    assert yaml.safe_load(capsys.readouterr().out) == as_document(Config())


def test_what_is_printed_is_in_force(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = written(tmp_path, "server: {listen: 'a:1'}\nlog: {format: json}\n")
    monkeypatch.setenv("EXTPROC_LISTEN", "b:2")

    assert main(["check-config", path]) == 0

    printed = load_config(capsys.readouterr().out, {})
    assert printed.server.listen == "b:2"
    assert printed.log.format == "json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {}", "sever: unknown key; did you mean 'server'?"),
        ("log: {level: loud}", "log.level: 'loud'; expected debug, info"),
        ("\ufeff{", "not YAML: "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, text)

    assert main(["check-config", path]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"extproc: {path}: {message}")
    assert captured.err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.yaml"
    assert main(["check-config", str(path)]) == 2
    assert capsys.readouterr().err == f"extproc: {path}: No such file or directory\n"

    path.write_bytes(b"log: \xff\xfe")
    assert main(["check-config", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["check-config", "a", "b"]])
def test_bad_arguments_are_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2


def test_an_unknown_command_is_status_2_and_names_the_near_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["chek-config"]) == 2
    assert "did you mean 'check-config'?" in capsys.readouterr().err


def test_files_that_do_not_exist_are_named_with_their_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.pem"
    there.write_text("PEM")
    path = written(
        tmp_path,
        f"""
server: {{tls: {{cert_file: {there}, key_file: /nowhere/key.pem}}}}
pools: [{{name: a, max_model_len: 1, api_key_file: /nowhere/key}}]
recording: {{file: /nowhere/recording.jsonl}}
state: {{store: directory, path: {tmp_path}/state}}
""",
    )

    assert main(["check-config", path]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in lines] == [
        "pools[0].api_key_file",
        "server.tls.key_file",
        "recording.file",
    ]
    assert all("/nowhere/" in line and "expected" in line for line in lines)


def test_servers_are_asked_online(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path,
        "pools: [{name: a, max_model_len: 1, endpoints: ['http://127.0.0.1:1']}]",
    )

    assert main(["check-config", "--online", path]) == 1

    printed = capsys.readouterr()
    assert printed.out.startswith("a  http://127.0.0.1:1  WRONG /v1/models: ")
    assert printed.err == ""
    assert main(["check-config", "--online"]) == 0
    assert capsys.readouterr().out.count("no endpoints: not checked") == 2
