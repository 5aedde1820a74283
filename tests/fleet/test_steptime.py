"""Step times match peak rates and the papers' constants."""

import math
from dataclasses import replace

import pytest

from extproc.fleet.gpus import GB, GPUS
from extproc.fleet.hardware import Deployment
from extproc.fleet.models import MODELS, Model
from extproc.fleet.steptime import Linear, Roofline, paper_step_time

QWEN = MODELS["Qwen3-235B-A22B"]
LLAMA = MODELS["Llama-3-70B"]


def matrices_only(model: Model, gpu: str) -> Roofline:
    links = replace(GPUS[gpu], link_bytes_per_s=math.inf)
    return Roofline(Deployment(model, links, 8), all_reduce_s=0, overhead_s=0)


def test_a_lone_decode_reads_the_weights_once() -> None:
    roofline = matrices_only(LLAMA, "A100-80GB")
    weights_s = 141.1 * GB / 8 / (2039 * GB * 0.8)
    assert roofline.fixed_s(0, 1) == pytest.approx(weights_s, rel=0.01)
    assert roofline.context_s == pytest.approx(327_680 / 8 / (2039 * GB * 0.8))


def test_a_large_prefill_is_bound_by_compute() -> None:
    roofline = matrices_only(LLAMA, "A100-80GB")
    flops_s = 2 * 70.55e9 * 8192 / (8 * 312e12 * 0.5)
    assert roofline.fixed_s(8192, 0) == pytest.approx(flops_s, rel=0.05)


def test_few_tokens_read_few_experts() -> None:
    """A step for one token reads only the active parameters, but a step for a large
    batch reads all parameters.
    """
    roofline = matrices_only(QWEN, "MI300X-192GB")
    per_s = 8 * 5300 * GB * 0.8
    assert roofline.fixed_s(0, 1) == pytest.approx(22e9 / per_s, rel=0.02)
    assert roofline.fixed_s(0, 128) == pytest.approx(235e9 / per_s, rel=0.03)


def test_replicated_kv_heads_cost_bandwidth_too() -> None:
    four, eight = (
        Roofline(Deployment(QWEN, GPUS["MI300X-192GB"], tp)) for tp in (4, 8)
    )
    assert four.context_s == eight.context_s


def test_papers_step_time() -> None:
    step = paper_step_time("A100-80GB")
    assert step.fixed_s(0, 16) == pytest.approx(18.4e-3)
    assert step.fixed_s(0, 128) == pytest.approx(91.2e-3)
    assert step.fixed_s(512, 15) == pytest.approx(step.fixed_s(0, 16))


def test_papers_first_order_rho_is_1_6_not_4() -> None:
    """Throughput grows as slots / step time: by a factor of 1.61, not 11.2 / 2.8 = 4."""
    step = Linear(base_s=8.0e-3, seq_s=0.65e-3)
    gain = (128 / step.fixed_s(0, 128)) / (16 / step.fixed_s(0, 16))
    assert round(gain, 2) == 1.61
