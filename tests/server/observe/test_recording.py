"""Recording appends whole lines, respects its size limit, and never fails a request."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from extproc.cli import main
from extproc.config import ConfigError, RecordingConfig
from extproc.exchange.events import Observation
from extproc.fleet.usage_log import read_records
from extproc.routing.policy import Pool, Reason
from extproc.routing.router import Decision, Lesson, Outcome
from extproc.server.build import build_recording
from extproc.server.observe.recording import Recording

SHORT, LONG = Pool("short", 8192, 8192), Pool("long", 65536, 65536)


def observe(
    recording: Recording, pool: Pool, counted: int, *, status: int = 200
) -> None:
    decision = Decision(
        pool,
        Reason.WITHIN_THRESHOLD if pool is SHORT else Reason.OVER_CAPACITY,
        "prose",
        body_bytes=4 * counted,
        prompt_tokens=int(counted * 1.1),
        bound_tokens=int(counted * 1.2),
        output_tokens=100,
        declared=True,
    )
    recording.observed(Observation(decision, Outcome(status, counted, 40)), Lesson())


def test_appends_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    for counted in (100, 200):
        recording = Recording(path, 10_000, lambda: 12.5)
        observe(recording, SHORT, counted)
        recording.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["usage"]["prompt_tokens"] for record in records] == [100, 200]
    assert records[0]["time"] == 12.5


def test_ends_before_it_grows_too_large(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recording.jsonl"
    with caplog.at_level(logging.WARNING):
        recording = Recording(path, 1000, lambda: 0.0)
        for _ in range(20):
            observe(recording, SHORT, 100)
    assert 500 < path.stat().st_size <= 1000
    assert path.read_text().endswith("}\n")
    assert [record.message for record in caplog.records] == ["recording_full"]
    recording = Recording(path, path.stat().st_size, lambda: 0.0)
    observe(recording, SHORT, 100)
    assert path.stat().st_size <= 1000


def test_a_full_disk_ends_it_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    recording = Recording(Path("/dev/full"), 1000, lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        observe(recording, SHORT, 100)
        observe(recording, SHORT, 100)
    assert [record.message for record in caplog.records] == ["recording_failed"]


def test_a_file_that_cannot_be_written_is_the_operators_mistake(tmp_path: Path) -> None:
    assert build_recording(RecordingConfig()) is None
    with pytest.raises(ConfigError, match=r"recording\.file.*expected"):
        build_recording(RecordingConfig(str(tmp_path / "no" / "file")))


def test_replay_scores_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recording.jsonl"
    instants = iter(range(0, 50, 10))
    recording = Recording(path, 1 << 20, lambda: next(instants))
    for _ in range(3):
        observe(recording, SHORT, 1000)
    observe(recording, LONG, 20_000)
    observe(recording, SHORT, 1000, status=503)
    recording.close()
    arguments = ["replay", str(path), "--pool-threshold", "1150"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] == 5
    assert report["scored"] == 4
    assert report["pools"] == {
        "short": {"requests": 4, "tokens": 3 * 1040, "too_small": 0, "too_large": 0},
        "long": {"requests": 1, "tokens": 20_040, "too_small": 0, "too_large": 0},
    }
    assert report["reasons"] == {"within_threshold": 4, "over_capacity": 1}
    assert report["seconds"] == 40
    assert report["advice"] is None  # five requests are too few
    # Three of the four requests need 1,100 tokens and have a budget of 1,300, so this
    # threshold sends them to the long pool needlessly.
    assert report["misroute_pct"] == {"1150": {"under": 0.0, "over": 75.0}}
    assert report["mape_pct"] == pytest.approx(10, abs=0.1)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "5 requests recorded in 40 s, 0.125 a second; 4 scored" in out
    assert "80.00" in out
    assert f"extproc plan --workload {path} --rate 0.125" in out


def test_replay_tells_what_a_recording_would_do_to_a_fleet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most requests are short, and some are in the wrong pool."""
    path = tmp_path / "recording.jsonl"
    instants = iter(range(1000))
    recording = Recording(path, 1 << 20, lambda: next(instants))
    for _ in range(270):
        observe(recording, SHORT, 1000)
    for _ in range(20):
        observe(recording, LONG, 20_000)
    for _ in range(7):
        observe(recording, LONG, 500)
    for _ in range(3):
        observe(recording, SHORT, 9000)
    recording.close()
    assert main(["replay", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pools"]["short"]["too_small"] == 3
    assert report["pools"]["short"]["too_large"] == 0
    assert report["pools"]["long"]["too_small"] == 0
    assert report["pools"]["long"]["too_large"] == 7
    advice = report["advice"]
    assert advice["current"]["threshold_tokens"] == 8192
    assert advice["best"]["threshold_tokens"] == 1536
    assert advice["best"]["saving"] > advice["current"]["saving"] > 0
    assert main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert "The best is 1,536:" in " ".join(out.split())
    assert max(map(len, out.splitlines()[:-1])) <= 100
    # plan also accepts the recording, and uses its token counts instead of its
    # estimates.
    with path.open() as lines:
        records = read_records(lines, path.name)
    prompts, outputs = records.workload.lengths.draw(np.random.default_rng(1), 1000)
    assert set(prompts) == {500, 1000, 9000, 20_000}
    assert set(outputs) == {40}


def test_what_was_estimated_is_no_count_to_plan_with(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    recording = Recording(path, 1 << 20, lambda: 0.0)
    observe(recording, SHORT, 1000)
    observe(recording, SHORT, 0, status=503)
    recording.close()
    with path.open() as lines:
        records = read_records(lines, path.name)
    assert (records.read, records.skipped) == (2, 1)


def test_replay_names_the_line_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recording.jsonl"
    recording = Recording(path, 1 << 20, lambda: 0.0)
    observe(recording, SHORT, 1000)
    recording.close()
    with path.open("a") as file:
        file.write('{"decision": {}}\n')
    assert main(["replay", str(path)]) == 2
    assert "line 2: Object missing required field `pool`" in capsys.readouterr().err
