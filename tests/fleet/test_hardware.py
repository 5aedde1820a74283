"""vLLM's limits and KV cache match its source, published logs and the papers."""

from dataclasses import replace

import pytest

from extproc.fleet.gpus import GB, GPUS, MIB
from extproc.fleet.hardware import (
    GIB,
    BatchDefaults,
    Deployment,
    batch_defaults,
    fitting_tensor_parallel_size,
)
from extproc.fleet.models import MODELS, check_tensor_parallel_size
from extproc.fleet.steptime import PAPER_KV_TOKENS, Roofline

QWEN = MODELS["Qwen3-235B-A22B"]
LLAMA = MODELS["Llama-3-70B"]
LLAMA_8B = MODELS["Llama-3.1-8B"]
MI300X_AS_COUNTED = replace(GPUS["MI300X-192GB"], memory_mib=round(192 * GB / MIB))
RTX_3090 = replace(GPUS["A100-80GB"], name="RTX-3090", memory_mib=24_576)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_kv_tokens_of_qwen3_235b_on_four_h100(cuda_graphs: bool) -> None:
    """vLLM issue 21348 logs "Available KV cache memory: 8.11 GiB" and 178,880 tokens."""
    deployment = Deployment(QWEN, GPUS["H100-80GB"], 4, 0.9, cuda_graphs=cuda_graphs)
    assert deployment.limits == BatchDefaults(1024, 8192)
    assert deployment.kv_tokens() == pytest.approx(178_880, rel=0.05)


@pytest.mark.parametrize(("batched", "blocks"), [(20_000, 1952), (29_000, 1478)])
def test_kv_blocks_of_llama_3_1_8b_on_an_rtx_3090(batched: int, blocks: int) -> None:
    """vLLM issue 10517 logs 1,952 blocks for steps of 20,000 tokens, 1,478 for 29,000.

    That release did not count the memory of CUDA graphs. The peaks of activation memory
    were 2.07 and 2.99 GiB.
    """
    deployment = Deployment(
        LLAMA_8B, RTX_3090, 1, 0.9, max_num_batched_tokens=batched, cuda_graphs=False
    )
    peak = {20_000: 2.07, 29_000: 2.99}[batched]
    assert deployment.activation_bytes / GIB == pytest.approx(peak, rel=0.01)
    assert deployment.num_blocks == pytest.approx(blocks, rel=0.05)


def test_kv_memory_of_llama_70b_on_eight_h200() -> None:
    """vLLM issue 10702 logs 110.52 to 110.99 GiB at a memory utilization of 0.95."""
    deployment = Deployment(
        LLAMA, GPUS["H200-141GB"], 8, 0.95, max_num_batched_tokens=512
    )
    assert deployment.kv_bytes_per_gpu / GIB == pytest.approx(110.7, rel=0.05)


@pytest.mark.parametrize(
    ("gpu", "server", "expected"),
    [
        ("A100-80GB", True, (256, 2048)),
        ("A100-80GB", False, (256, 8192)),
        ("L40S-48GB", True, (256, 2048)),
        ("H100-80GB", True, (1024, 8192)),
        ("H100-80GB", False, (1024, 16_384)),
        ("H200-141GB", True, (1024, 8192)),
        ("MI300X-192GB", True, (1024, 16_384)),
    ],
)
def test_batch_defaults_are_those_of_vllms_source(
    gpu: str, server: bool, expected: tuple[int, int]
) -> None:
    assert batch_defaults(GPUS[gpu], server=server) == BatchDefaults(*expected)


def test_memory_is_what_the_driver_reports() -> None:
    reported = {name: gpu.memory_mib for name, gpu in GPUS.items()}
    assert reported["A100-80GB"] == 81_920
    assert reported["H100-80GB"] == 81_559
    assert reported["H200-141GB"] == 143_771
    assert GPUS["A100-80GB"].memory_bytes == 81_920 * 2**20


def test_limits_take_memory_from_the_kv_cache() -> None:
    usual = Deployment(LLAMA, GPUS["H100-80GB"], 4)
    few = replace(usual, max_num_seqs=64)
    large = replace(usual, max_num_seqs=64, max_num_batched_tokens=65_536)
    assert few.kv_tokens() > usual.kv_tokens() > large.kv_tokens()


@pytest.mark.parametrize("size", [0, -1, 3, 5, 6, 7, 12, 128])
def test_tensor_parallelism_divides_the_heads(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size}; expected a divisor of Llama-3-70B"):
        check_tensor_parallel_size(LLAMA, size)


def test_tensor_parallelism_replicates_or_divides_kv_heads() -> None:
    for size in (1, 2, 4, 8, 16, 32, 64):
        check_tensor_parallel_size(LLAMA, size)
    six_kv_heads = replace(LLAMA, num_attention_heads=48, num_key_value_heads=6)
    with pytest.raises(ValueError, match=r"6 KV heads: 1, 2, 3, 6, 12, 24, 48"):
        check_tensor_parallel_size(six_kv_heads, 4)


def test_across_nodes_the_network_is_what_carries() -> None:
    def all_reduces_s(size: int) -> float:
        roofline = Roofline(Deployment(LLAMA, GPUS["H100-80GB"], size), overhead_s=0)
        return roofline.fixed_s(4096, 0) - 2 * LLAMA.parameters * 4096 / (
            989e12 * 0.5 * size
        )

    assert all_reduces_s(16) > 5 * all_reduces_s(8)


@pytest.mark.parametrize(
    ("model", "gpu", "expected"),
    [(LLAMA_8B, "A100-80GB", 1), (LLAMA, "A100-80GB", 4), (LLAMA, "H200-141GB", 2)],
)
def test_the_fewest_gpus_that_hold_a_request(
    model: object, gpu: str, expected: int
) -> None:
    found = fitting_tensor_parallel_size(model, GPUS[gpu], 0.92, 65_536)  # type: ignore[arg-type]
    assert found == expected


def test_676_and_169_sequences_take_kv_heads_that_split_eight_ways() -> None:
    """The papers divide KV bytes by 8 GPUs, although the GPUs store each of 4 heads
    twice.
    """
    one_byte = replace(QWEN, weight_bytes=1.0)
    deployment = Deployment(one_byte, MI300X_AS_COUNTED, 8, 0.9, reserved_bytes=10 * GB)
    assert deployment.kv_bytes_per_gpu == pytest.approx(133.4 * GB, rel=1e-3)
    assert QWEN.kv_bytes_per_token / 8 == 24_064
    tokens = deployment.kv_bytes_per_gpu / (QWEN.kv_bytes_per_token / 8)
    assert (int(tokens // 8192), int(tokens // 32_768)) == (676, 169)
    assert QWEN.kv_bytes_per_token_per_gpu(8) == 48_128
    assert deployment.worst_case_seqs(8192) == 338
    assert deployment.worst_case_seqs(32_768) == 84


@pytest.mark.parametrize(
    ("tensor_parallel_size", "at_64k", "at_8k"), [(2, 0, 3), (4, 7, 59), (8, 20, 167)]
)
def test_16_and_128_sequences_of_llama_3_70b_are_not_of_two_a100(
    tensor_parallel_size: int, at_64k: int, at_8k: int
) -> None:
    deployment = Deployment(LLAMA, GPUS["A100-80GB"], tensor_parallel_size)
    assert LLAMA.kv_bytes_per_token == 327_680
    assert deployment.worst_case_seqs(65_536) == at_64k
    assert deployment.worst_case_seqs(8192) == at_8k
    assert (PAPER_KV_TOKENS // 65_536, PAPER_KV_TOKENS // 8192) == (16, 128)


def test_weights_that_do_not_fit_leave_no_blocks() -> None:
    deployment = Deployment(LLAMA, GPUS["L40S-48GB"], 1)
    assert deployment.kv_bytes_per_gpu < 0
    assert deployment.num_blocks == 0


def test_every_model_fits_some_gpu_and_every_constant_has_a_source() -> None:
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
        assert gpu.memory_source
        for part in (gpu.price.date, gpu.price.region, gpu.price.source):
            assert part in str(gpu.price)
