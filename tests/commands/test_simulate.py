"""``extproc simulate`` on the command line."""

import json
import re
from pathlib import Path

import pytest

from extproc.cli import main
from extproc.commands.simulate_text import print_fleet

SMALL = [
    *("simulate", "--model", "Llama-3.1-8B", "--gpu", "H100-80GB"),
    *("--rate", "10", "--requests", "1200", "--instances", "3,1"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "--requests: 0; expected >= 1"),
        (["--pool", "a:10"], "--pool: a:10; expected NAME:MAX_MODEL_LEN:INSTANCES"),
        (["--pool", "a:10:0"], "--pool: a:10:0; expected at least one instance"),
        (
            ["--pool", "a:100:1", "--pool", "b:100:1"],
            "--pool: b:100:1; expected increasing MAX_MODEL_LEN",
        ),
        (
            ["--pool", "a:999999999:1"],
            "--pool: a:999999999:1: max_model_len: 999999999",
        ),
        (["--instances", "few"], "--instances: few; expected N,M"),
        (["--variation", "-1"], "--variation: -1.0; expected >= 0"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"extproc simulate: {message}")
    assert captured.err.count("\n") == 1


def test_one_object_with_every_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert [pool["instances"] for pool in document["pools"]] == [3, 1]
    assert document["p99_ttft_s"]["mean"] > 0
    assert document["p99_ttft_s"]["half_width"] > 0
    assert document["state"] == "steady"
    assert document["pools"][0]["p99_ttft_s"]["mean"] > 0
    document["pools"][0]["p99_ttft_s"] = {"mean": 0.25, "half_width": None}
    print_fleet(document)
    text = capsys.readouterr().out
    assert re.search(r"P99 TTFT, ms +250 \+- \? ", text)
    assert "+- ?: too few requests for an interval; take more --requests" in text


def test_a_pool_that_gets_few_requests_is_measured_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*SMALL, "--router", "oracle", "--requests", "20000"]
    assert main([*arguments, "--json"]) == 0
    short, long = json.loads(capsys.readouterr().out)["pools"]
    assert not short["measured_alone"]
    assert long["measured_alone"]
    assert long["requests"] >= 990
    assert long["requests_per_s"]["mean"] < 0.01
    assert long["mean_ttft_s"]["mean"] > 0


def test_replications_give_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    status = main([*SMALL, "--replications", "2", "--router", "oracle", "--json"])
    assert status == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seeds"] == [42, 43]
    assert document["p50_ttft_s"]["half_width"] > 0


def test_records_without_counts_are_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    good = {"time": 1.0, "usage": {"prompt_tokens": 50, "completion_tokens": 5}}
    lines = [json.dumps(good | {"time": t}) for t in range(50)] + ['{"usage": null}']
    log.write_text("\n".join(lines))
    arguments = ["--workload", str(log), "--arrivals", "poisson", "--json"]
    assert main([*SMALL, *arguments]) == 0
    captured = capsys.readouterr()
    assert "log.jsonl: 1 of 51 records have no usable token counts" in captured.err
    recorded = ["--workload", str(log), "--arrivals", "recorded", "--router", "oracle"]
    assert main([*SMALL, *recorded, "--requests", "50"]) == 0
    assert "P99 TTFT" in capsys.readouterr().out
