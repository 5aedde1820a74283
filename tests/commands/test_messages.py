"""The commands' errors for wrong invocations: one short line without Python's names."""

import re
from pathlib import Path

import pytest

from extproc.cli import COMMANDS, main

MAX_WORDS = 30
PYTHON_NAMES = re.compile(
    r"\b[A-Z]\w*(Error|Exception|Disconnected)\b|\[Errno|Traceback|urlopen|ssl:default"
    r"|\b_\w+|\b(int|float|str) value|<class|NoneType"
)

FILES = {
    "empty": "",
    "junk.json": "not json",
    "list.json": "[]",
    "record.jsonl": '{"path": 3}\n',
    "body.jsonl": '{"body": 5, "usage": {"prompt_tokens": 1}}\n',
    "usage.jsonl": '{"path": "/v1/completions", "body": "{}"}\n',
    "ok.jsonl": '{"path": "/v1/completions", "body": "{\\"prompt\\": \\"a\\"}",'
    ' "usage": {"prompt_tokens": 1}}\n',
    "twice.yaml": "mode: route\nmode: shadow\n",
    "list.yaml": "- a\n",
    "unit.yaml": "pools: [{name: a, max_model_len: 8K}]\n",
    "order.yaml": "pools:\n- {name: a, max_model_len: 9}\n- {name: b, max_model_len: 8}\n",
    "tls.yaml": "server: {tls: {cert_file: /nowhere/c.pem, key_file: /nowhere/k.pem}}\n",
    "key.yaml": "sever: {}\n",
    "url.yaml": "pools: [{name: a, max_model_len: 9, endpoints: [vllm:8000]}]\n",
}

WRONG = [
    "serv",
    "check-config {}/none.yaml",
    "check-config {}",
    "check-config {}/twice.yaml",
    "check-config {}/list.yaml",
    "check-config {}/unit.yaml",
    "check-config {}/order.yaml",
    "check-config {}/key.yaml",
    "check-config {}/url.yaml",
    "check-config {}/junk.json",
    "check-config a b",
    "serve --config {}/tls.yaml",
    "serve --config {}/twice.yaml",
    "explain {}/none.json",
    "explain --server 127.0.0.1:9090 {}/list.json",
    "explain --server http://127.0.0.1:1 {}/list.json",
    "replay",
    "replay {}/none",
    "replay {}/empty",
    "replay {}/junk.json",
    "replay {}/list.json",
    "replay {}/record.jsonl",
    "replay {}/body.jsonl",
    "replay {}/usage.jsonl",
    "replay --sample 2 {}/ok.jsonl",
    "replay --sample some {}/ok.jsonl",
    "replay --pool-threshold -3 {}/ok.jsonl",
    "replay --pool-threshold many {}/ok.jsonl",
    "replay --estimator emma {}/ok.jsonl",
    "replay --cold gpt {}/ok.jsonl",
    "demo --count 0",
    "demo --count few",
    "demo --requests {}/none",
    "demo --requests {}/junk.json",
    "routes --for nginx",
    "routes --config {}/key.yaml",
    "plan --gpu H100",
    "plan --gpu none",
    "plan --model nosuch",
    "plan --workload nosuch",
    "plan --workload {}/empty",
    "plan --workload {}/junk.json",
    "plan --workload lmsys --rate -1",
    "plan --workload lmsys --rate fast",
    "plan --bogus",
    "simulate --workload lmsys --rate 1 --instances x",
    "profile http://127.0.0.1:1",
    "profile 127.0.0.1:1",
    "completion tcsh",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent ``serve`` from configuring the logging of the test process."""
    monkeypatch.setattr("extproc.commands.serve.configure_logging", lambda config: None)


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_invocation_is_one_short_line(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([part.format(folder) for part in command.split()])
    except SystemExit as ended:
        status = int(ended.code or 0)

    printed = capsys.readouterr()
    assert status in (1, 2)
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("extproc")
    said = line.replace(str(folder), "")
    assert len(said.split()) < MAX_WORDS
    assert not PYTHON_NAMES.search(said)


def test_every_command_has_a_wrong_invocation_here() -> None:
    assert set(COMMANDS) <= {command.split()[0] for command in WRONG}


def test_a_body_that_is_no_request_is_said_and_is_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", f"{folder}/junk.json"]) == 1
    assert "not read: not JSON" in capsys.readouterr().out
