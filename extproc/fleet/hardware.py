"""The default limits of a vLLM instance, and the memory left for its KV cache.

At startup, vLLM measures its memory use without the KV cache (gpu_worker.py,
determine_available_memory): weights, the peak of a profiling step of
``max_num_batched_tokens``, the sampling of ``max_num_seqs`` rows of logits, memory
outside PyTorch and, since 0.21, the CUDA graphs. This module computes the same terms;
two published logs verify them (tests/fleet/test_hardware.py). Efficiency factors and
reserved memory are fields with default values, each with its reason. ``extproc
profile`` measures a live server, and its results replace all of these fields.
"""

from dataclasses import dataclass

from extproc.fleet.gpus import Gpu
from extproc.fleet.models import Model

GIB = 1 << 30

#: vLLM's default (vllm/config/cache.py, 0.32.0; 0.9 until 0.21).
GPU_MEMORY_UTILIZATION = 0.92

#: Memory that the driver counts but CUDA hides. PyTorch sees 139.72 of the 140.40 GiB
#: of an H200 (vLLM issue 10702), and 23.58 of the 24.00 GiB of an RTX 3090 (vLLM issue
#: 10517).
HIDDEN_BYTES = 0.55 * GIB
#: Memory outside PyTorch on one GPU, for kernels and workspaces: 0.35 GiB in vLLM issue
#: 10517.
NON_TORCH_BYTES = 0.35 * GIB
#: Additional memory for each further GPU of a tensor-parallel group, for buffers of
#: NCCL and of the all-reduce. The value is fitted, and lies between 0 (issue 13061, two
#: GPUs without peer access) and 0.7 (issue 10702, eight H200).
NON_TORCH_BYTES_PER_PEER = 0.28 * GIB
#: Bytes per logit during sampling: 2 for the computed logit, 2 for the gathered one and
#: 4 for its 32-bit form; 12 for the values and 64-bit indices of a sort, and 12 for its
#: scratch memory; 4 each for softmax, its running sum and the logits in their old order
#: (apply_top_k_top_p_pytorch). With 1,024 sequences and a large vocabulary, sampling
#: needs the most memory after the weights. Only one published log has that number of
#: sequences, issue 21348 of 2025; the terms were chosen to match this log, and no
#: second log verifies them. vLLM 0.32 samples without a sort if FlashInfer is present;
#: in this case the estimate of KV tokens is too low.
LOGIT_BYTES = 44
#: Memory per layer for captured CUDA graphs of all sizes: a pool of about 0.6 GiB,
#: divided by 94 layers. This is an estimate; logs show 0.1 (a small model) to 1 GiB.
GRAPH_BYTES_PER_LAYER = 0.0064 * GIB


@dataclass(frozen=True, slots=True)
class BatchDefaults:
    """Default ``max_num_seqs`` and ``max_num_batched_tokens`` of vLLM."""

    max_num_seqs: int
    max_num_batched_tokens: int


def batch_defaults(gpu: Gpu, *, server: bool = True) -> BatchDefaults:
    """Return the defaults for a GPU (vllm/engine/arg_utils.py, get_batch_defaults).

    Args:
        server: True for ``vllm serve``, False for the offline ``LLM`` class (both of
            vLLM 0.32.0).
    """
    if gpu.memory_bytes >= 160 * GIB:
        return BatchDefaults(1024, 16_384)
    # vLLM: "Setting large max_num_batched_tokens for A100 reduces throughput".
    if gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        return BatchDefaults(1024, 8192 if server else 16_384)
    return BatchDefaults(256, 2048 if server else 8192)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One vLLM instance: a model on a number of GPUs.

    Attributes:
        tensor_parallel_size: number of GPUs of the instance.
        gpu_memory_utilization: vLLM's share of each GPU's memory, in (0, 1].
        max_num_seqs, max_num_batched_tokens: flags of the server; None for vLLM's
            defaults on the GPU.
        reserved_bytes: memory per GPU used for neither weights nor KV cache; None for
            the sum of the terms of this module. 0 reproduces the papers' arithmetic.
        cuda_graphs: whether to count captured graphs (since vLLM 0.21).
        block_size: number of tokens in a KV block; vLLM's default is 16.
    """

    model: Model
    gpu: Gpu
    tensor_parallel_size: int
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    reserved_bytes: float | None = None
    cuda_graphs: bool = True
    block_size: int = 16

    @property
    def limits(self) -> BatchDefaults:
        """Return the limits of sequences and tokens per step, by default vLLM's."""
        defaults = batch_defaults(self.gpu)
        return BatchDefaults(
            self.max_num_seqs or defaults.max_num_seqs,
            self.max_num_batched_tokens or defaults.max_num_batched_tokens,
        )

    @property
    def activation_bytes(self) -> float:
        """Return one GPU's peak memory in a profiling step, for layers or for sampling.

        In 16 bits, each token of the step needs gate, up and their product, this GPU's
        share of the MLP, and three vectors of the hidden size: 110,592 bytes for
        Llama-3.1-8B, as vLLM measured (issue 10517: 2.07 GiB at 20,000 tokens and 2.99
        at 29,000). With experts, each token needs ``experts_per_token`` times as much.
        """
        model, limits = self.model, self.limits
        rows = model.experts_per_token
        width = 3 * model.intermediate_size * rows / self.tensor_parallel_size
        hidden = (2 + rows) * model.hidden_size
        layer = limits.max_num_batched_tokens * 2 * (width + hidden)
        sampled = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        return max(layer, sampled * model.vocab_size * LOGIT_BYTES)

    @property
    def beside_weights_bytes(self) -> float:
        """Return one GPU's memory used for neither weights nor KV cache, in bytes."""
        if self.reserved_bytes is not None:
            return self.reserved_bytes
        peers = self.tensor_parallel_size if self.tensor_parallel_size > 1 else 0
        graphs = GRAPH_BYTES_PER_LAYER * self.model.num_hidden_layers
        return (
            HIDDEN_BYTES * self.gpu_memory_utilization
            + NON_TORCH_BYTES
            + NON_TORCH_BYTES_PER_PEER * peers
            + self.activation_bytes
            + (graphs if self.cuda_graphs else 0.0)
        )

    @property
    def kv_bytes_per_gpu(self) -> float:
        """Return one GPU's bytes for the KV cache; negative if weights do not fit."""
        return (
            self.gpu.memory_bytes * self.gpu_memory_utilization
            - self.model.total_weight_bytes / self.tensor_parallel_size
            - self.beside_weights_bytes
        )

    def kv_tokens(self, max_model_len: int | None = None) -> int:
        """Return the capacity of the KV cache in tokens, as vLLM logs it.

        A layer with a sliding window stores only this window and the tokens of a step,
        for any length of context. So vLLM counts the sequences of ``max_model_len``
        tokens that fit, and multiplies by this length (kv_cache_utils.py,
        get_max_concurrency_for_kv_cache_config).

        Args:
            max_model_len: window of the server; None for the model's own.
        """
        model = self.model
        layer = model.layer_kv_bytes_per_gpu(self.tensor_parallel_size)
        length = max_model_len or model.max_position_embeddings
        kept = min(length, model.sliding_window + self.limits.max_num_batched_tokens)
        per_sequence = layer * (
            model.full_layers * length + model.sliding_layers * kept
        )
        blocks = max(0.0, self.kv_bytes_per_gpu) / per_sequence * length
        return int(blocks // self.block_size) * self.block_size

    @property
    def num_blocks(self) -> int:
        """Return the instance's number of KV blocks, including the null block, or 0."""
        return self.kv_tokens() // self.block_size

    def worst_case_seqs(self, max_model_len: int) -> int:
        """Return the number of sequences of ``max_model_len`` tokens that fit at once.

        An operator who sizes for the worst case uses this value as ``max_num_seqs``, as
        in the papers' homogeneous fleet.
        """
        return (self.num_blocks - 1) * self.block_size // max_model_len


def fitting_tensor_parallel_size(
    model: Model, gpu: Gpu, gpu_memory_utilization: float, max_model_len: int
) -> int | None:
    """Return the minimum number of GPUs, a power of two, for ``max_model_len`` tokens.

    Return None if a whole node is too small.
    """
    size = 1
    while size <= gpu.gpus_per_node:
        deployment = Deployment(model, gpu, size, gpu_memory_utilization)
        divides = model.num_attention_heads % size == 0
        if divides and deployment.kv_tokens(max_model_len) >= max_model_len:
            return size
        size *= 2
    return None
