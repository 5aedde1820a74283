"""Models, described by the sizes that determine weights, KV cache and step times."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer, as in its published ``config.json``.

    Attributes:
        parameters: number of all parameters; ``active_parameters``: number of
            parameters used for one token.
        intermediate_size: width of the MLP in a dense layer or in one expert.
        weight_bytes: mean bytes per parameter as served, including scales.
        kv_bytes: bytes per element of the KV cache.
        fp8_compute: whether matrices are multiplied in 8 bits.
        num_experts, experts_per_token: 1 each for a dense model.
        tensor_parallel_size: default number of GPUs of one instance.
        max_position_embeddings: maximum useful ``max_model_len``.
        latent_kv_dim: elements per token and layer with multi-head latent attention
            (DeepSeek), for the compressed vector and the rotary key; all heads share
            these, and every GPU stores a complete copy. 0 for other attention.
        sliding_layers, sliding_window: number of layers with a limited window of
            attention, and its size in tokens.
    """

    name: str
    parameters: float
    active_parameters: float
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    tensor_parallel_size: int
    max_position_embeddings: int
    source: str
    weight_bytes: float = 2
    kv_bytes: float = 2
    fp8_compute: bool = False
    num_experts: int = 1
    experts_per_token: int = 1
    latent_kv_dim: int = 0
    sliding_layers: int = 0
    sliding_window: int = 0

    @property
    def total_weight_bytes(self) -> float:
        """Bytes of all weights."""
        return self.parameters * self.weight_bytes

    @property
    def full_layers(self) -> int:
        """Number of layers that attend to the whole context."""
        return self.num_hidden_layers - self.sliding_layers

    @property
    def _layer_kv_bytes(self) -> float:
        """Bytes of one token in one layer, with each KV head counted once."""
        elements = self.latent_kv_dim or 2 * self.num_key_value_heads * self.head_dim
        return elements * self.kv_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values in all layers and heads."""
        return self.num_hidden_layers * self._layer_kv_bytes

    def layer_kv_bytes_per_gpu(self, tensor_parallel_size: int) -> float:
        """Return the bytes of one token in one layer on each GPU.

        A GPU stores at least one KV head: with more GPUs than heads, heads are
        replicated (vllm/config/model.py, get_num_kv_heads, which returns 1 for latent
        attention, because its vector is not divided among GPUs).
        """
        if self.latent_kv_dim:
            return self._layer_kv_bytes
        heads = math.ceil(self.num_key_value_heads / tensor_parallel_size)
        return self._layer_kv_bytes * heads / self.num_key_value_heads

    def kv_bytes_per_token_per_gpu(self, tensor_parallel_size: int) -> float:
        """Return the bytes that one more token of a long context needs on each GPU."""
        return self.full_layers * self.layer_kv_bytes_per_gpu(tensor_parallel_size)


def check_tensor_parallel_size(model: Model, tensor_parallel_size: int) -> None:
    """Raise an error for a tensor-parallel size that vLLM refuses.

    The size must divide the attention heads (vllm/config/model.py,
    verify_with_parallel_config), and must divide the KV heads or be a multiple of their
    number (vllm/model_executor/layers/linear.py, QKVParallelLinear).

    Raises:
        ValueError: vLLM refuses the size; the message lists the accepted sizes.
    """
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads

    def divides(size: int) -> bool:
        larger, smaller = max(size, kv_heads), min(size, kv_heads)
        shared = bool(model.latent_kv_dim) or larger % smaller == 0
        return heads % size == 0 and shared

    if tensor_parallel_size < 1 or not divides(tensor_parallel_size):
        sizes = [str(size) for size in range(1, min(heads, 64) + 1) if divides(size)]
        raise ValueError(
            f"{tensor_parallel_size}; expected a divisor of {model.name}'s {heads} "
            f"heads that is compatible with its {kv_heads} KV heads: {', '.join(sizes)}"
        )


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
            intermediate_size=28_672,
            vocab_size=128_256,
            # With two A100-80GB, the weights leave little room for KV cache (see
            # README.md).
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
            intermediate_size=14_336,
            vocab_size=128_256,
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
            intermediate_size=25_600,
            vocab_size=151_936,
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
            intermediate_size=1536,
            vocab_size=151_936,
            # 8 bits for weights, 16 bits for embeddings and head (1.2e9 parameters).
            weight_bytes=1.0055,
            fp8_compute=True,
            num_experts=128,
            experts_per_token=8,
            tensor_parallel_size=8,
            max_position_embeddings=131_072,
            source="Qwen/Qwen3-235B-A22B-FP8 config.json and model card",
        ),
    )
}
