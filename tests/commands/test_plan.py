"""``extproc plan`` on the command line: status, one-line errors, one JSON object."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from extproc.cli import main
from extproc.commands.plan_text import dollars

SMALL = [
    *("plan", "--model", "Llama-3.1-8B", "--gpu", "H100-80GB", "--processes", "1"),
    *("--no-sweep", "--requests", "1000"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--rate: 0.0; expected > 0"),
        (["--cv", "-1"], "--cv: -1.0; expected > 0"),
        (
            ["--workload", "none"],
            "--workload: none; expected a file or one of azure-code",
        ),
        (["--threshold", "70000"], "--threshold: 70000; expected 2 or more, and less"),
        (["--slo-ttft", "0"], "--slo-ttft: 0.0; expected > 0"),
        (["--slo-preemption-rate", "-1"], "--slo-preemption-rate: -1.0; expected >= 0"),
        (["--slo-long-ttft", "-1"], "--slo-long-ttft: -1.0; expected > 0"),
        (["--headroom", "1"], "--headroom: 1.0; expected 0 <= x < 1"),
        (["--emit", __file__], f"--emit: {__file__}; expected a directory"),
        (["--max-num-seqs", "0"], "--max-num-seqs: 0; expected >= 1"),
        (["--requests", "10"], "--requests: 10; expected >= 1000"),
        (["--processes", "0"], "--processes: 0; expected >= 1"),
        (["--max-model-len", "2000000"], "--max-model-len: max_model_len: 2000000"),
        (
            ["--arrivals", "recorded"],
            "--arrivals: recorded; expected a --workload file",
        ),
        (["--profile", "nowhere.json"], "--profile: nowhere.json: "),
        (
            ["--report", "no/such/folder.html"],
            "--report: no/such/folder.html; expected",
        ),
        (
            ["--report", "."],
            "--report: .; expected",
        ),
        (
            [
                "--model",
                "Llama-3-70B",
                "--gpu",
                "L40S-48GB",
                "--tensor-parallel-size",
                "1",
            ],
            "--tensor-parallel-size: 1; expected more: Llama-3-70B leaves no room",
        ),
        (
            ["--step-time", "paper", "--gpu", "L40S-48GB"],
            "--step-time: paper; expected --gpu A100-80GB or H100-80GB",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"extproc plan: {message}")
    assert captured.err.count("\n") == 1


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trace in Azure's format, compressed with gzip but without a .gz name."""
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for second in range(60):
        for i in range(4):
            prompt = (
                9000 if (second, i) == (30, 0) else 100 + 37 * ((second * 4 + i) % 40)
            )
            rows.append(f"2023-11-16 18:15:{second:02}.{i}000000,{prompt},{5 + i}")
    path = tmp_path_factory.mktemp("traces") / "mine.csv"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    return path


def test_a_plan_of_ones_own_trace(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "plan.html"
    where = tmp_path / "apply"
    status = main(
        [
            *(*SMALL, "--workload", str(trace), "--json"),
            *("--report", str(page), "--emit", str(where)),
        ]
    )
    assert status == 0
    captured = capsys.readouterr()
    document: dict[str, Any] = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert document["workload"] == "mine.csv"
    assert document["rate"] == pytest.approx(4.0, rel=0.01)
    assert document["traffic"].startswith(
        "recorded arrivals: the whole file, 60 s, 240"
    )
    assert [pool["name"] for pool in document["pools"]] == ["short", "long"]
    assert document["instances"] == sum(p["instances"] for p in document["pools"])
    assert document["seed"] == 42
    assert document["slo"]["p99_ttft_s"] == 2.0
    assert 0.99 < document["alpha"] < 1
    assert {"homogeneous-worst-case", "homogeneous-paged", "split-oracle"} <= set(
        document["baselines"]
    )
    for key in ("rho", "formula_saving_pct", "dollars_per_year", "wall_time_s"):
        assert isinstance(document[key], int | float)
    assert page.read_text().startswith("<!doctype html>")
    assert {path.name for path in where.iterdir()} == {
        "vllm-short.sh",
        "vllm-long.sh",
        "router.yaml",
    }
    assert "--tensor-parallel-size 1" in (where / "vllm-short.sh").read_text()


def test_a_file_without_times_has_no_rate_to_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,completion_tokens\n" + "100,10\n" * 30)
    assert main([*SMALL, "--workload", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("extproc plan: --rate: missing; expected requests a second")
    assert "lengths.csv has no arrival times" in error


@pytest.mark.parametrize(
    ("amount", "text"), [(1_234_567, "$1,234,567"), (-35_215, "-$35,215"), (0, "$0")]
)
def test_dollars_have_their_sign_before_them(amount: int, text: str) -> None:
    assert dollars(amount) == text
