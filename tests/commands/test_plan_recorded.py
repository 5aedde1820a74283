"""``extproc plan`` for a log with bursts, and for a log that reports cached tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extproc.cli import main

# The tests make five plans, which take about 35 s of CPU time.
pytestmark = pytest.mark.slow

_RATE = 5.0
_MINUTE_S = 60


def write_log(path: Path, *, cached_share: float = 0.0) -> Path:
    """Write a minute's log of five requests a second, half of them within four seconds."""
    rng = np.random.default_rng(4)
    count = int(_RATE * _MINUTE_S)
    bursts = rng.choice(4, count // 2) * 15 + rng.random(count // 2)
    instants = np.concatenate([bursts, _MINUTE_S * rng.random(count - count // 2)])
    with path.open("w") as log:
        for at_s in np.sort(instants).tolist():
            prompt = int(rng.integers(500, 3000))
            usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": 40}
            usage["prompt_tokens_details"] = {
                "cached_tokens": int(cached_share * prompt)
            }
            record = {"created": 1_700_000_000 + at_s, "usage": usage}
            log.write(json.dumps(record) + "\n")
    return path


def plan(
    log: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, Any]:
    status = main(
        [
            *("plan", "--workload", str(log), "--json", "--no-sweep"),
            *("--model", "Llama-3.1-8B", "--gpu", "L40S-48GB"),
            *("--tensor-parallel-size", "1", "--max-model-len", "16384"),
            *("--slo-ttft", "1", "--requests", "1000", "--processes", "1"),
            *options,
        ]
    )
    assert status == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_recorded_bursts_take_more_instances_than_poisson_arrivals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "usage.jsonl")

    recorded = plan(log, capsys)
    poisson = plan(log, capsys, "--arrivals", "poisson")

    assert recorded["traffic"].startswith("recorded arrivals: the whole file")
    assert poisson["rate"] == pytest.approx(recorded["rate"])
    assert recorded["slo_met"]
    assert poisson["slo_met"]
    assert recorded["instances"] > poisson["instances"]
    assert recorded["prefix_caching"] is None
    for name, row in recorded["baselines"].items():
        assert row["instances"] >= poisson["baselines"][name]["instances"], name


def test_reported_cached_tokens_save_instances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "usage.jsonl", cached_share=0.6)

    found = plan(log, capsys)["prefix_caching"]

    counts = found["instances"]
    assert counts["one pool, caching"] < counts["one pool, no caching"]
    assert counts["split, caching"] < counts["split, no caching"]
    assert found["reported"]
    # The share is lower than the reported share of 0.6, because only whole blocks can
    # be found.
    assert 0.58 < found["unlimited_share"] < 0.6
    assert {row["balancing"] for row in found["hits"]} == {"least-request"}
    for row in found["hits"]:
        assert row["cached_share"] == pytest.approx(found["unlimited_share"], abs=0.01)

    off = plan(log, capsys, "--no-enable-prefix-caching")
    assert off["prefix_caching"] is None
    assert off["instances"] == counts["split, no caching"]
