"""KV budgets that the papers state, and what they really are."""

import pytest

from extproc.fleet.hardware import (
    GB,
    GPUS,
    MODELS,
    Deployment,
)
from extproc.fleet.steptime import PAPER_KV_TOKENS

QWEN = MODELS["Qwen3-235B-A22B"]
LLAMA = MODELS["Llama-3-70B"]


def test_676_and_169_sequences_take_kv_heads_that_split_eight_ways() -> None:
    """The papers divide KV bytes by 8 GPUs; 4 KV heads on 8 GPUs are held twice."""
    deployment = Deployment(QWEN, GPUS["MI300X-192GB"], 8, reserved_bytes=10 * GB)
    assert deployment.kv_bytes_per_gpu == pytest.approx(133.4 * GB, rel=1e-3)
    assert QWEN.kv_bytes_per_token / 8 == 24_064
    tokens = deployment.kv_bytes_per_gpu / (QWEN.kv_bytes_per_token / 8)
    assert (int(tokens // 8192), int(tokens // 32_768)) == (676, 169)
    assert QWEN.kv_bytes_per_token_per_gpu(8) == 48_128
    assert deployment.worst_case_seqs(8192) == 338
    assert deployment.worst_case_seqs(32_768) == 84


@pytest.mark.parametrize(
    ("tensor_parallel_size", "at_64k", "at_8k"), [(2, 0, 1), (4, 6, 54), (8, 20, 162)]
)
def test_16_and_128_sequences_of_llama_3_70b_are_not_of_two_a100(
    tensor_parallel_size: int, at_64k: int, at_8k: int
) -> None:
    deployment = Deployment(
        LLAMA, GPUS["A100-80GB"], tensor_parallel_size, reserved_bytes=0
    )
    assert LLAMA.kv_bytes_per_token == 327_680
    assert deployment.worst_case_seqs(65_536) == at_64k
    assert deployment.worst_case_seqs(8192) == at_8k
    assert (PAPER_KV_TOKENS // 65_536, PAPER_KV_TOKENS // 8192) == (16, 128)


def test_weights_that_do_not_fit_leave_no_blocks() -> None:
    deployment = Deployment(LLAMA, GPUS["L40S-48GB"], 1)
    assert deployment.kv_bytes_per_gpu < 0
    assert deployment.num_blocks == 0


def test_every_model_fits_some_gpu_as_deployed_and_every_constant_has_a_source() -> (
    None
):
    for model in MODELS.values():
        assert model.source
        fits = [
            gpu
            for gpu in GPUS.values()
            if Deployment(model, gpu, model.tensor_parallel_size).num_blocks
        ]
        assert len(fits) >= 4
    for gpu in GPUS.values():
        assert gpu.source
        assert gpu.price_source
