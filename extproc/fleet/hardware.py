"""GPUs, models, and the KV cache that is left beside the weights.

Every constant has a public source beside it. What is no published constant but a
choice (efficiency factors, memory kept free) is a field with a default and its reason;
``extproc profile`` measures a live server and replaces all of it.

Tensor parallelism splits weights evenly. It splits the KV heads too, but a GPU cannot
hold less than one: with more GPUs than KV heads, heads are replicated, and an instance
holds fewer tokens than its memory divided by the model's KV bytes a token
(``vllm/config/model.py``, ``get_num_kv_heads``).
"""

import math
from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator, by its data sheet (dense figures, no sparsity).

    Attributes:
        memory_bytes: capacity; data sheets count 10^9 bytes to the GB.
        memory_bytes_per_s: peak memory bandwidth.
        bf16_flops: peak 16-bit matrix throughput, FLOP/s.
        fp8_flops: peak 8-bit one; equal to ``bf16_flops`` where there is none.
        link_bytes_per_s: GPU-to-GPU bandwidth, one direction.
        usd_per_hour: a public price, only a default: use your own.
        source: where the figures come from.
        price_source: where the price comes from.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    link_bytes_per_s: float
    usd_per_hour: float
    source: str
    price_source: str


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer, by its published ``config.json``.

    Attributes:
        parameters: all of them; ``active_parameters``: those one token passes.
        weight_bytes: bytes of a parameter as served; ``kv_bytes``: of a KV element.
        num_experts, experts_per_token: 1 and 1 for a dense model.
        tensor_parallel_size: GPUs of one instance unless told otherwise.
        max_position_embeddings: the longest ``max_model_len`` that makes sense.
    """

    name: str
    parameters: float
    active_parameters: float
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    weight_bytes: float
    kv_bytes: float
    num_experts: int
    experts_per_token: int
    tensor_parallel_size: int
    max_position_embeddings: int
    source: str

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values of one token, over all layers and heads."""
        return (
            2
            * self.num_hidden_layers
            * self.num_key_value_heads
            * self.head_dim
            * self.kv_bytes
        )

    def kv_bytes_per_token_per_gpu(self, tensor_parallel_size: int) -> float:
        """Bytes that one token takes on each GPU, replicated heads included."""
        heads = math.ceil(self.num_key_value_heads / tensor_parallel_size)
        return self.kv_bytes_per_token * heads / self.num_key_value_heads


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A100-80GB",
            memory_bytes=80 * GB,
            memory_bytes_per_s=2039 * GB,
            bf16_flops=312e12,
            fp8_flops=312e12,
            link_bytes_per_s=300 * GB,
            usd_per_hour=2.21,
            source="NVIDIA A100 80GB SXM data sheet (NVLink 600 GB/s both ways)",
            price_source="arXiv 2604.08075, section 4 ($2.21 a GPU-hour)",
        ),
        Gpu(
            "H100-80GB",
            memory_bytes=80 * GB,
            memory_bytes_per_s=3350 * GB,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            link_bytes_per_s=450 * GB,
            usd_per_hour=4.02,
            source="NVIDIA H100 SXM data sheet (NVLink 900 GB/s both ways)",
            price_source="vllm-project/semantic-router, fleet-sim profiles.py",
        ),
        Gpu(
            "H200-141GB",
            memory_bytes=141 * GB,
            memory_bytes_per_s=4800 * GB,
            bf16_flops=989e12,
            fp8_flops=1979e12,
            link_bytes_per_s=450 * GB,
            usd_per_hour=5.408,
            source="NVIDIA H200 SXM data sheet (NVLink 900 GB/s both ways)",
            price_source="AWS EC2 Capacity Blocks, 8 x H200 at $43.26 an hour (2024)",
        ),
        Gpu(
            "L40S-48GB",
            memory_bytes=48 * GB,
            memory_bytes_per_s=864 * GB,
            bf16_flops=362e12,
            fp8_flops=733e12,
            link_bytes_per_s=32 * GB,
            usd_per_hour=1.861,
            source="NVIDIA L40S data sheet (PCIe 4.0 x16, 64 GB/s both ways)",
            price_source="AWS g6e.xlarge on demand, us-east-1 (August 2025)",
        ),
        Gpu(
            "MI300X-192GB",
            memory_bytes=192 * GB,
            memory_bytes_per_s=5300 * GB,
            bf16_flops=1307e12,
            fp8_flops=2615e12,
            link_bytes_per_s=448 * GB,
            usd_per_hour=3.67,
            source="AMD MI300X data sheet (Infinity Fabric 896 GB/s both ways)",
            price_source="arXiv 2604.08075, section 4.7 ($3.67 a GPU-hour)",
        ),
    )
}

MODELS = {
    model.name: model
    for model in (
        Model(
            "Llama-3-70B",
            parameters=70.55e9,
            active_parameters=70.55e9,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            hidden_size=8192,
            weight_bytes=2,
            kv_bytes=2,
            num_experts=1,
            experts_per_token=1,
            # Two A100-80GB hold its weights and next to no KV cache: see README.md.
            tensor_parallel_size=8,
            max_position_embeddings=131_072,
            source="meta-llama/Meta-Llama-3-70B config.json (3.1: 131,072 positions)",
        ),
        Model(
            "Llama-3.1-8B",
            parameters=8.03e9,
            active_parameters=8.03e9,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            hidden_size=4096,
            weight_bytes=2,
            kv_bytes=2,
            num_experts=1,
            experts_per_token=1,
            tensor_parallel_size=1,
            max_position_embeddings=131_072,
            source="meta-llama/Llama-3.1-8B config.json",
        ),
        Model(
            "Qwen3-32B",
            parameters=32.8e9,
            active_parameters=32.8e9,
            num_hidden_layers=64,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            hidden_size=5120,
            weight_bytes=2,
            kv_bytes=2,
            num_experts=1,
            experts_per_token=1,
            tensor_parallel_size=2,
            max_position_embeddings=131_072,
            source="Qwen/Qwen3-32B config.json and model card (131,072 with YaRN)",
        ),
        Model(
            "Qwen3-235B-A22B",
            parameters=235e9,
            active_parameters=22e9,
            num_hidden_layers=94,
            num_attention_heads=64,
            num_key_value_heads=4,
            head_dim=128,
            hidden_size=4096,
            weight_bytes=1,
            kv_bytes=2,
            num_experts=128,
            experts_per_token=8,
            tensor_parallel_size=8,
            max_position_embeddings=131_072,
            source="Qwen/Qwen3-235B-A22B-FP8 config.json and model card",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model on some GPUs: one vLLM instance.

    Attributes:
        tensor_parallel_size: GPUs of the instance.
        gpu_memory_utilization: vLLM's share of each GPU's memory; its default is 0.9.
        reserved_bytes: per GPU, what activations, CUDA graphs and NCCL take beside the
            weights. vLLM measures it at start; 2 GB is a round guess for a step of
            8,192 tokens, and 0 reproduces the papers' arithmetic.
        block_size: tokens of a KV block; vLLM's default is 16.
    """

    model: Model
    gpu: Gpu
    tensor_parallel_size: int
    gpu_memory_utilization: float = 0.9
    reserved_bytes: float = 2 * GB
    block_size: int = 16

    @property
    def kv_bytes_per_gpu(self) -> float:
        """Memory of one GPU left for the KV cache; negative if weights do not fit."""
        weights = self.model.parameters * self.model.weight_bytes
        return (
            self.gpu.memory_bytes * self.gpu_memory_utilization
            - weights / self.tensor_parallel_size
            - self.reserved_bytes
        )

    @property
    def num_blocks(self) -> int:
        """KV blocks of the instance, the null block included; 0 if none fits."""
        per_token = self.model.kv_bytes_per_token_per_gpu(self.tensor_parallel_size)
        return max(0, int(self.kv_bytes_per_gpu // (per_token * self.block_size)))

    def worst_case_seqs(self, max_model_len: int) -> int:
        """Sequences of ``max_model_len`` tokens that fit at once.

        The ``max_num_seqs`` of an operator who sizes for the worst case, which is
        what the papers' homogeneous fleet does.
        """
        return (self.num_blocks - 1) * self.block_size // max_model_len
