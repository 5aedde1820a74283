"""Files as arguments of `plan` and `simulate`."""

import argparse
import gzip
import json
import os
from pathlib import Path

import pytest

from extproc.commands import plan, simulate
from extproc.commands.hardware_options import (
    complete_limits,
    read_deployment,
    read_engine,
)
from extproc.commands.progress import time_left
from extproc.commands.run_options import usable_cores
from extproc.commands.traffic_options import OptionError, read_workload
from extproc.fleet.hardware_profile import Measured, Profile
from extproc.fleet.steptime import Linear
from extproc.fleet.workload import Recorded

CSV = "ContextTokens,GeneratedTokens\n374,44\n396,109\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_may_be_gzipped_and_marked(
    tmp_path: Path, encoding: str, packed: bool
) -> None:
    path = tmp_path / "log.csv"
    data = CSV.encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    lengths = read_workload(str(path)).lengths
    assert isinstance(lengths, Recorded)
    assert lengths.prompts.tolist() == [374, 396]


def test_notes_on_a_file_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(CSV + "1,\n")
    read_workload(str(path))
    said = capsys.readouterr().err
    assert "log.csv: 1 of 3 records have no usable token counts" in said
    assert "log.csv: 2 records are few" in said


def test_a_file_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(OptionError, match=r"--workload: log.csv: columns a, b; expec"):
        read_workload(str(path))


def arguments(*given: str, command: str = "plan") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    {"plan": plan, "simulate": simulate}[command].add_arguments(parser)
    return parser.parse_args(given)


@pytest.mark.parametrize(
    ("gpu", "seqs"), [("A100-80GB", 256), ("L40S-48GB", 256), ("H100-80GB", 1024)]
)
@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_sequences_are_vllms_default_on_the_gpu(
    gpu: str, seqs: int, command: str
) -> None:
    complete = complete_limits(arguments("--gpu", gpu, command=command))
    assert (complete.max_num_seqs, complete.max_model_len) == (seqs, 65_536)
    given = complete_limits(arguments("--gpu", gpu, "--max-num-seqs", "7"))
    assert given.max_num_seqs == 7


def test_the_window_is_the_models_if_that_is_less(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    complete = complete_limits(arguments("--model", str(tmp_path)))
    assert (complete.max_model_len, complete.threshold) == (8192, [4096])
    deployment = read_deployment(complete)
    assert deployment.tensor_parallel_size == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--tensor-parallel-size", "3"), "--tensor-parallel-size: 3; expected a divi"),
        (("--tensor-parallel-size", "0"), "--tensor-parallel-size: 0; expected a divi"),
        (("--gpu-memory-utilization", "1.5"), "--gpu-memory-utilization: 1.5; expect"),
        (("--tensor-parallel-size", "1"), "Llama-3-70B leaves no room for a KV cache"),
        (("--model", "GPT-9"), "--model: GPT-9; expected one of Llama-3-70B"),
    ],
)
def test_what_vllm_refuses_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_deployment(complete_limits(arguments(*given)))


def write_profile(path: Path, usd: float | None) -> None:
    profile = Profile(
        "m",
        Linear(5e-3, 2e-4, 3e-5),
        0.004,
        500,
        16,
        2048,
        16,
        512,
        1,
        Measured(0.05, max_batch=16, max_context_tokens=545, max_prompt_tokens=512),
        usd,
    )
    path.write_text(json.dumps(profile.to_document()))


def test_a_profile_sets_window_sequences_and_batch(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_profile(path, 1.25)
    complete = complete_limits(arguments("--profile", str(path)))
    assert complete.max_model_len == 2048
    assert complete.max_num_seqs == 16
    assert complete.max_num_batched_tokens == 512
    assert complete.threshold == [1024]
    assert read_engine(complete).usd_per_gpu_hour == 1.25


def test_a_plan_beyond_a_profile_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    write_profile(path, None)
    plan.read_question(
        arguments("--profile", str(path), "--rate", "3", "--max-num-seqs", "64")
    )
    said = capsys.readouterr().err
    assert "max_num_seqs: 64; the server's is 16" in said
    assert "contexts of decoding measured up to 545" in said
    assert "no price given" in said


@pytest.mark.parametrize(("records", "planned"), [(3, False), (19, False), (20, True)])
def test_too_few_records_are_not_planned_for(
    tmp_path: Path, records: int, planned: bool
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "700,30\n" * records)
    options = arguments("--workload", str(path), "--rate", "3")
    if planned:
        assert plan.read_question(options).workload.name == "log.csv"
        return
    with pytest.raises(OptionError, match=f"{records} usable records of log.csv; exp"):
        plan.read_question(options)


@pytest.mark.parametrize(
    ("passed_s", "done", "said"),
    [
        (0.0, 0, ""),
        (10.0, 2, ", about 30 s left"),
        (100.0, 2, ", about 5 min left"),
        (10.0, 8, ""),
    ],
)
def test_the_time_left_follows_the_pace(passed_s: float, done: int, said: str) -> None:
    assert time_left(passed_s, done, 8) == said


def test_the_cores_that_may_be_used_are_counted() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_vllms_switches_are_on_unless_turned_off() -> None:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    for arguments, expected in (
        ([], (True, True)),
        (["--no-enable-prefix-caching", "--no-async-scheduling"], (False, False)),
    ):
        args = complete_limits(parser.parse_args(arguments))
        limits = read_engine(args).limits(8192, 64, 2048)
        switches = (limits.enable_prefix_caching, limits.async_scheduling)
        assert switches == expected


def test_the_made_up_hour_is_a_workload() -> None:
    made = read_workload("conversations")
    assert made.synthetic
    assert made.sessions is not None
