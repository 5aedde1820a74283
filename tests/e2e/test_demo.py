"""The command `extproc demo`, seen from outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.demo.stack.envoy_config import find_config, load_config
from extproc.demo.stack.process import Child, answers_200

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extproc", "demo", *arguments]
    environment = ENVIRONMENT | environment
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )


def test_it_sends_learns_and_prints_one_object(
    tmp_path: Path, patiently: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = load_config(find_config())
    patiently(None)(config)
    file = tmp_path_factory.mktemp("patient") / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    done = demo(
        *("--json", "--count", "70", "--seed", "5", "--envoy-config", str(file)),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["requests"], printed["failed"], printed["without_decision"]) == (
        70,
        0,
        0,
    )
    assert sum(printed["pools"].values()) == 70
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
    assert not list(tmp_path.iterdir())
    assert len(nearer) == 3
    assert all(nearer)


@pytest.mark.slow
def test_the_user_s_own_requests_and_a_clean_end(tmp_path: Path) -> None:
    """One of the requests is rejected. The demo runs until SIGTERM, and leaves no
    process behind.
    """
    file = tmp_path / "mine.jsonl"
    good = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 3,
    }
    bad = {"path": "/v1/completions", "body": {"prompt": "Hello", "max_tokens": 0}}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    options = ["--requests", str(file), "--keep-running", "--no-latency"]
    command = [sys.executable, "-m", "extproc", "demo", *options]
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    child = Child("demo", command, tmp_path / "demo.log", environment)
    with child:
        child.wait_ready(lambda: "Ctrl-C stops it" in child.log.read_text(), 120)
        said = child.log.read_text()
        url = said.partition("curl -i ")[2].partition("/v1/")[0]
        assert answers_200(f"{url}/v1/models", 60)
        # Unlike a signal from a terminal, this signal does not go to the whole process
        # group, because the demo must stop its own children.
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(60) == 1
    assert not answers_200(f"{url}/v1/models")
    said = child.log.read_text()
    assert "2 requests" in said
    assert "FAILED /v1/completions: 400" in said
    # The logs are kept in the printed folder.
    folder = Path(said.strip().rpartition("logs are in ")[2])
    assert {"envoy.log", "extproc.log", "vllm-short.log"} <= {
        path.name for path in folder.iterdir()
    }
