import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from extproc.cli import main
from extproc.config import EstimatorName

PROJECT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("EXTPROC_SHARED", PROJECT.parent / "shared"))


def line(text: str = "word " * 40, prompt: int = 60, **more: Any) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    body |= more.pop("body", {})
    usage = {"prompt_tokens": prompt, "completion_tokens": 20}
    return json.dumps(
        {
            "path": "/v1/chat/completions",
            "body": json.dumps(body),
            "usage": usage,
            **more,
        }
    )


def replayed(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["replay", str(log), "--json", *more]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report: dict[str, Any] = json.loads(captured.out)
    return report


def test_a_thin_sample_is_learned_from_once_enough_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are 540 scored requests; every one of the first 140 is observed."""
    report = replayed([line()] * 600, tmp_path, capsys, "--sample", "auto")
    assert 100 * 140 / 540 < report["observed_pct"] < 40
    assert report["first_requests"]["scored"] == 50


def test_one_json_object_with_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = replayed([line()] * 20, tmp_path, capsys)

    assert report.keys() >= {
        "requests",
        "scored",
        "mape_pct",
        "bias_pct",
        "under_estimate_rate",
        "misroute_pct",
        "by_category",
    }
    assert (report["requests"], report["scored"]) == (20, 18)
    assert report["misroute_pct"].keys() == {"2048", "4096", "8192"}
    assert report["misroute_pct"]["2048"].keys() == {"under", "over"}
    assert report["by_category"].keys() == {"prose"}


def test_each_request_is_estimated_first_and_learned_from_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Apply the papers' rule by hand: start at 4.0, and with each request move 5 %
    closer to the truth.
    """
    lines = [line("x" * 100, 50)] * 2
    body_bytes = len(json.loads(lines[0])["body"])

    report = replayed(lines, tmp_path, capsys, "--estimator", "ema")

    observed = body_bytes / 50
    ratio = 4.0 + 0.05 * (observed - 4.0)
    deviation = 0.05 * abs(observed - ratio)
    first, second = -(-body_bytes // 4), -(-body_bytes // (ratio - deviation))
    errors = [abs(estimate - 50) / 50 for estimate in (first, second)]
    assert report["mape_pct"] == pytest.approx(100 * sum(errors) / 2, abs=0.01)


def test_misroutes_are_shares_of_the_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fits = line(prompt=60, body={"max_tokens": 10})
    too_long = line(prompt=5000, body={"max_tokens": 10})
    lines = [fits] * 19 + [too_long]

    report = replayed(
        lines, tmp_path, capsys, *("--pool-threshold", "100", "--estimator", "bytes/4")
    )

    assert report["misroute_pct"] == {"100": {"under": round(100 / 18, 2), "over": 0.0}}


@pytest.mark.parametrize("estimator", EstimatorName)
def test_every_estimator_can_be_named(
    estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = replayed([line()] * 3, tmp_path, capsys, "--estimator", estimator)

    assert report["estimator"] == estimator


def test_the_hint_header_is_read_whatever_its_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(headers={"X-LLM-Category": "code"})] * 3

    assert replayed(lines, tmp_path, capsys)["by_category"].keys() == {"code"}


def test_what_is_no_request_is_counted_and_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line()] * 4 + [json.dumps({**json.loads(line()), "body": "{"})]

    report = replayed(lines, tmp_path, capsys)

    assert (report["requests"], report["scored"]) == (5, 4)


def test_empty_lines_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replayed(["", line(), "  "], tmp_path, capsys)["requests"] == 1


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_log_is_an_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(text, encoding="utf-8")

    assert main(["replay", str(log)]) == 2
    assert "empty; expected one JSON object a line" in capsys.readouterr().err


def test_a_dash_is_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(line().encode() + b"\n")))
    monkeypatch.setattr("sys.stdin", stdin)

    assert main(["replay", "-", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["requests"] == 1


def test_without_json_a_table_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(line() + "\n")

    assert main(["replay", str(log)]) == 0

    table = capsys.readouterr().out
    assert "1 requests" in table
    assert "prose" in table


USAGE = {"prompt_tokens": 5}


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        "5",
        "null",
        '"text"',
        "{}",
        json.dumps({"usage": USAGE}),
        json.dumps({"body": "{}"}),
        json.dumps({"body": {}, "usage": USAGE}),
        json.dumps({"body": "{}", "usage": None}),
        json.dumps({"body": "{}", "usage": {}}),
        json.dumps({"body": "{}", "usage": {"prompt_tokens": None}}),
        json.dumps({"body": "{}", "usage": {"prompt_tokens": "many"}}),
        json.dumps({"body": "{}", "usage": {"prompt_tokens": [5]}}),
        json.dumps({"body": "{}", "usage": {**USAGE, "completion_tokens": "x"}}),
        json.dumps({"body": "\ud800", "usage": USAGE}),
        json.dumps({"path": 5, "body": "{}", "usage": USAGE}),
        json.dumps({"headers": [], "body": "{}", "usage": USAGE}) + "x",
        json.dumps({"headers": "x", "body": "{}", "usage": USAGE}),
        json.dumps(
            {"headers": {"x-llm-category": ["code"]}, "body": "{}", "usage": USAGE}
        ),
        '{"usage": ' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
    ids=lambda bad: bad[:60],
)
def test_a_bad_line_is_named_in_one_line_and_status_2(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f"{line()}\n{bad}\n")

    assert main(["replay", str(log), "--json"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"extproc: {log}: line 2: ")
    assert captured.err.count("\n") == 1


def test_a_log_that_is_not_there_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith("No such file or directory\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--estimator", "guess"],
        ["--pool-threshold", "x"],
        ["--sample", "2"],
        ["--nope"],
    ],
)
def test_bad_arguments_are_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay", "-", *arguments])

    assert ended.value.code == 2


@pytest.mark.parametrize("estimator", ["ema", "text"])
def test_a_log_of_real_requests(
    estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = SHARED / "tools" / "corpus_log.py"
    if not tool.exists():
        pytest.skip("no corpora beside the project")
    log = tmp_path / "log.jsonl"
    with log.open("wb") as lines:
        corpora = str(SHARED / "data/corpora")
        command = [sys.executable, str(tool), corpora, "--limit", "300"]
        subprocess.run(command, check=True, stdout=lines)

    assert main(["replay", str(log), "--estimator", estimator, "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert (report["requests"], report["scored"]) == (300, 270)
    assert 0 < report["mape_pct"] < 60
    for misroutes in report["misroute_pct"].values():
        assert 0 <= misroutes["under"] + misroutes["over"] < 30
    assert len(report["by_category"]) >= 5
