"""The command `extproc demo`, from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.process import Child, answers_200

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def demo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extproc", "demo", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **options
    )


def test_it_sends_learns_and_prints_one_object() -> None:
    done = demo("--json", "--count", "84", "--seed", "5")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["requests"], printed["failed"], printed["without_decision"]) == (
        84,
        0,
        0,
    )
    assert sum(printed["pools"].values()) == 84
    assert min(printed["pools"]["short"], printed["pools"]["long"]) > 0
    assert printed["misroutes"] == sum(printed["misroutes_by_direction"].values())
    assert (
        printed["mape_after_pct"]
        < printed["mape_before_pct"]
        < printed["mape_bytes_over_four_pct"]
    )
    assert set(printed["added_latency_ms"]) == {"p50", "p99"}
    assert printed["overflow_check"] == {
        "prompt_tokens": printed["overflow_check"]["prompt_tokens"],
        "status": 200,
        "attempts": 2,
        "answered_by": "vllm_long",
    }
    nearer = [
        abs(ratio["learned"] - ratio["true"]) < abs(ratio["start"] - ratio["true"])
        for category, ratio in printed["bytes_per_token"].items()
        if category in ("digits", "structured", "other_script")
    ]
    assert len(nearer) == 3
    assert all(nearer)


def test_the_user_s_own_requests_are_sent_and_a_refusal_is_a_failure(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.jsonl"
    good = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 3,
    }
    bad = {"path": "/v1/completions", "body": {"prompt": "Hello", "max_tokens": 0}}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    done = demo("--requests", str(file))
    assert done.returncode == 1
    assert "2 requests" in done.stdout
    assert "FAILED /v1/completions: 400" in done.stdout
    # The logs are kept, and are where it says.
    folder = Path(done.stderr.strip().rpartition("logs are in ")[2])
    assert {"envoy.log", "extproc.log", "vllm-short.log"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.parametrize(
    "content", [None, "", "not JSON\n"], ids=["missing", "empty", "broken"]
)
def test_a_file_that_is_none_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_text(content)
    done = demo("--requests", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"extproc: --requests: {file}: ")
    assert done.stderr.count("\n") == 1


def test_without_a_vllm_it_says_so() -> None:
    done = demo("--vllm", "--vllm-python", "/nowhere/python")
    assert done.returncode == 1
    assert "/nowhere/python has no vllm" in done.stderr


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"]
)
def test_it_stays_until_it_is_told_to_stop_and_leaves_nothing(
    number: int, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "extproc",
        "demo",
        "--count",
        "7",
        "--keep-running",
    ]
    child = Child(
        "demo",
        command,
        tmp_path / "demo.log",
        {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    with child:
        child.wait_ready(lambda: "Ctrl-C stops it" in child.log.read_text(), 60)
        text = child.log.read_text()
        url = text.partition("curl -i ")[2].partition("/v1/")[0]
        assert answers_200(f"{url}/v1/models")
        # Not to the whole group, as a terminal would: what it started is its to stop.
        os.kill(child.pid, number)
        deadline = time.monotonic() + 20
        while child.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert child.stop() == 0
    assert not answers_200(f"{url}/v1/models")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.log"]
