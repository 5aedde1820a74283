"""Arguments that ``extproc plan --pool-gpu`` accepts, and arguments that it rejects."""

import argparse

import pytest

from extproc.cli import main
from extproc.commands.plan import add_arguments, read_question
from extproc.fleet.gpus import GPUS


def read(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*options, "--workload", "lmsys"])


def test_a_pools_limits_follow_from_its_own_gpu() -> None:
    question = read_question(read("--pool-gpu", "long=H100-80GB"))

    assert set(question.pool_hardware) == {"long"}
    own = question.hardware("long")
    assert own.engine.name == "Llama-3-70B on 8 x H100-80GB"
    assert own.engine.usd_per_gpu_hour == GPUS["H100-80GB"].usd_per_hour
    assert own.max_num_seqs == 1024
    assert own.max_num_batched_tokens > question.max_num_batched_tokens
    assert question.hardware("short").engine is question.engine
    assert question.hardware("all").engine is question.engine


def test_limits_that_are_given_hold_for_every_pool() -> None:
    options = ("--max-num-seqs", "32", "--max-num-batched-tokens", "768")
    own = read_question(read("--pool-gpu", "short=H200-141GB:4:2.5", *options))
    hardware = own.hardware("short")
    assert (hardware.max_num_seqs, hardware.max_num_batched_tokens) == (32, 768)
    assert hardware.engine.gpus == 4
    assert hardware.engine.usd_per_gpu_hour == 2.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["long"], "long; expected NAME=GPU"),
        (["=H100-80GB"], "=H100-80GB; expected NAME=GPU"),
        (["long=H100"], "long=H100; expected a GPU of A100-80GB"),
        (["long=H100-80GB:x"], "long=H100-80GB:x; expected NAME=GPU"),
        (["long=H100-80GB:8:nan"], "long=H100-80GB:8:nan; expected at least 1 GPU"),
        (["long=H100-80GB:0"], "long=H100-80GB:0; expected at least 1 GPU"),
        (["long=H100-80GB:8:1:1"], "long=H100-80GB:8:1:1; expected NAME=GPU"),
        (["middle=H100-80GB"], "middle; expected a pool of short, long"),
        (
            ["long=H100-80GB", "long=A100-80GB"],
            "long twice; expected each pool once",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for option in options for part in ("--pool-gpu", option)]
    assert main(["plan", "--workload", "lmsys", *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"extproc plan: --pool-gpu: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "other", [["--disaggregate"], ["--step-time", "paper"], ["--paper"]]
)
def test_what_it_does_not_go_with(
    other: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--pool-gpu", "long=H100-80GB", *other]) == 2
    assert "--pool-gpu: long=H100-80GB; expected" in capsys.readouterr().err
