"""``replay`` and ``plan`` score each model of a fleet separately."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from extproc.cli import main
from extproc.exchange.events import Observation
from extproc.exchange.observation_line import write_line
from extproc.routing.decision import Decision, Outcome
from extproc.routing.policy import Pool, Reason

FLEET = """
models:
  llama:
    adapters: [support]
    pools: [{name: l-short, max_model_len: 8192}, {name: l-long, max_model_len: 65536}]
  qwen:
    pools: [{name: q, max_model_len: 32768}]
"""
POOLS = {
    "llama": Pool("l-short", 8192, 8192, "llama"),
    "qwen": Pool("q", 32768, 32768, "qwen"),
}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.jsonl"
    with path.open("wb") as lines:
        for number in range(60):
            pool = POOLS["qwen" if number % 3 else "llama"]
            decision = Decision(
                pool,
                Reason.WITHIN_THRESHOLD,
                "prose",
                model=pool.model,
                prompt_tokens=100,
                bound_tokens=120,
                output_tokens=50,
                declared=True,
            )
            outcome = Outcome(200, 200 if pool.model == "qwen" else 100, 30)
            lines.write(write_line(Observation(decision, outcome), 1000.0 + number))
    return path


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_recording_is_scored_model_by_model(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: Any = json.loads(run(["replay", recording, "--json"], capsys))
    assert list(printed["models"]) == ["llama", "qwen"]
    assert printed["models"]["llama"]["requests"] == 20
    assert list(printed["models"]["qwen"]["pools"]) == ["q"]
    assert printed["models"]["llama"]["mape_pct"] == 0
    assert printed["models"]["qwen"]["mape_pct"] == 50
    text = run(["replay", recording], capsys)
    assert "llama:" in text
    assert f"extproc plan --workload {recording} --served-model qwen" in text


def test_simulate_takes_the_records_of_one_model(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate", "--workload", recording, "--served-model", "qwen"]
    text = run([*words, "--rate", 5, "--requests", 200, "--json"], capsys)
    assert json.loads(text)
    wrong = [*map(str, words[:-1]), "gpt", "--rate", "5"]
    assert main(wrong) == 2
    assert "--served-model: 'gpt'; expected llama, qwen" in capsys.readouterr().err


def test_a_log_of_requests_is_replayed_model_by_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "extproc.yaml"
    config.write_text(FLEET)
    log = tmp_path / "log.jsonl"
    with log.open("w") as lines:
        for number in range(60):
            name = ("support", "qwen", "unknown")[number % 3]
            body = {
                "model": name,
                "messages": [{"role": "user", "content": "Hi. " * 9}],
            }
            entry = {
                "path": "/v1/chat/completions",
                "body": json.dumps(body),
                "usage": {"prompt_tokens": 40, "completion_tokens": 9},
            }
            lines.write(json.dumps(entry) + "\n")
    printed: Any = json.loads(
        run(["replay", "--config", config, log, "--json"], capsys)
    )
    assert list(printed["models"]) == ["llama", "qwen"]
    assert printed["models"]["llama"]["scored"] == 18
    assert printed["reasons"]["unknown_model"] == 20
    assert "llama" in run(["replay", "--config", config, log], capsys)
