"""Reads a model's parameters, weights and KV cache from its ``config.json``.

The keys are those of Hugging Face configurations (and of Mistral's ``params.json``).
Supported models are decoders with grouped, multi-query or latent attention, dense or
with experts, with or without sliding-window layers, quantized according to
``quantization_config``.
"""

from dataclasses import dataclass
from typing import Any

from extproc.fleet.models import Model
from extproc.fleet.quantization import (
    ModelConfigError,
    Quantization,
    kv_element_bytes,
    read_quantization,
)
from extproc.json_object import JsonObject

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner"),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
    ),
    "num_experts": ("num_experts", "n_routed_experts", "num_local_experts"),
    "experts_per_token": (
        "num_experts_per_tok",
        "experts_per_token",
        "num_experts_per_token",
        "moe_topk",
    ),
    "moe_intermediate_size": ("moe_intermediate_size",),
}
#: Keys that contain the language model of a multimodal model.
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
#: Model types with two matrices in the MLP instead of three.
_UNGATED = frozenset(
    {"opt", "gpt2", "gptj", "gpt_neox", "gpt_bigcode", "falcon", "phi", "bloom", "mpt"}
    | {"starcoder2", "nemotron"}
)
#: Model types whose embeddings are also the head, unless the file specifies otherwise.
_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gpt2"})
#: Kinds of RoPE scaling with a factor that max_position_embeddings already includes
#: (vllm/config/model.py, _get_and_verify_max_len).
_UNSCALED = frozenset({"default", "llama3", "longrope", "su", "mrope", "proportional"})
#: Kinds of layers that store a state of fixed size instead of keys and values.
_STATES = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv"})


class _Config:
    """The values of one configuration; a value may have one of several names."""

    def __init__(self, values: JsonObject) -> None:
        self._values = values

    def get(self, name: str, default: Any = None) -> Any:
        for key in _NAMES.get(name, (name,)):
            if self._values.get(key) is not None:
                return self._values[key]
        return default

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number >= 1 (>= 0 with a default of 0).

        Raises:
            ModelConfigError: the value is not such a number, or is missing without a
                default.
        """
        value = self.get(name, default)
        if value is None:
            keys = ", ".join(_NAMES.get(name, (name,)))
            raise ModelConfigError(f"{name}: missing; expected one of {keys}")
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ModelConfigError(
                f"{name}: {value!r}; expected a whole number >= {least}"
            )
        return value


@dataclass(frozen=True, slots=True)
class _Parts:
    """Numbers of parameters in all layers, grouped by the effect of quantization.

    Attributes:
        attention, mlp, experts: parameters of linear layers; ``experts`` covers all
            routed experts.
        plain: parameters of embeddings, head, routers and norms, which keep 16 bits
            with any quantization.
    """

    attention: float
    mlp: float
    experts: float
    plain: float

    @property
    def total(self) -> float:
        return self.attention + self.mlp + self.experts + self.plain


def read_model_config(
    document: Any, name: str, *, kv_cache_dtype: str = "auto"
) -> Model:
    """Return the model that a configuration describes.

    Args:
        document: the parsed ``config.json``.
        name: name of the model if the file has none.
        kv_cache_dtype: vLLM's option: ``auto`` (from the checkpoint, otherwise 16
            bits), ``fp8`` or ``bfloat16``.

    Raises:
        ModelConfigError: a key is missing or invalid; the message names the key.
    """
    if not isinstance(document, dict):
        raise ModelConfigError("config: not a JSON object; expected config.json")
    quantization = document.get("quantization_config")
    values: JsonObject = document
    for key in _TEXT:
        if isinstance(values.get(key), dict):
            values = {**values[key]}
            quantization = values.get("quantization_config") or quantization
            values.setdefault("model_type", document.get("model_type"))
    config = _Config(values)
    kinds = _layer_kinds(config)
    parts = _count_parts(config)
    kept = read_quantization(quantization)
    experts = _experts(config)
    per_token = min(config.count("experts_per_token", 1), experts)
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    latent = config.count("kv_lora_rank", 0)
    weights = _weight_bytes(parts, kept)
    intermediate = config.count("intermediate_size", 4 * config.count("hidden_size"))
    return Model(
        name=name,
        parameters=parts.total,
        active_parameters=parts.total - parts.experts * (1 - per_token / experts),
        num_hidden_layers=config.count("num_hidden_layers"),
        num_attention_heads=config.count("num_attention_heads"),
        num_key_value_heads=_kv_heads(config),
        head_dim=_head_dim(config),
        hidden_size=config.count("hidden_size"),
        intermediate_size=(
            config.count("moe_intermediate_size", intermediate)
            if experts > 1
            else intermediate
        ),
        vocab_size=_vocabulary(config),
        weight_bytes=weights / parts.total,
        kv_bytes=kv_element_bytes(kv_cache_dtype, quantization),
        fp8_compute=kept.fp8_compute,
        num_experts=experts,
        experts_per_token=per_token,
        tensor_parallel_size=1,
        max_position_embeddings=_max_positions(config),
        source=f"{name}: its config.json",
        latent_kv_dim=latent + config.count("qk_rope_head_dim", 0) if latent else 0,
        sliding_layers=sliding,
        sliding_window=config.count("sliding_window", 0) if sliding else 0,
    )


def _experts(config: _Config) -> int:
    """Return the number of routed experts of a layer, at least 1."""
    return config.count("num_experts", 0) or 1


def _vocabulary(config: _Config) -> int:
    gemma3 = str(config.get("model_type", "")).startswith("gemma3")
    return config.count("vocab_size", 262_208 if gemma3 else None)


def _kv_heads(config: _Config) -> int:
    if config.get("multi_query") is True and not config.get("num_key_value_heads"):
        return 1
    return config.count("num_key_value_heads", config.count("num_attention_heads"))


def _head_dim(config: _Config) -> int:
    """Return a head's width; for latent attention, the mean for query-key and value."""
    heads = config.count("num_attention_heads")
    if config.get("kv_lora_rank"):
        qk = config.count("qk_nope_head_dim") + config.count("qk_rope_head_dim")
        return (qk + config.count("v_head_dim")) // 2
    return config.count("head_dim", config.count("hidden_size") // heads)


def _layer_kinds(config: _Config) -> list[str]:
    """Return ``full_attention`` or ``sliding_attention`` for each layer.

    Raises:
        ModelConfigError: the model has layers that store a state instead of keys and
            values.
    """
    layers = config.count("num_hidden_layers")
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        states = sorted({str(kind) for kind in kinds} & _STATES)
        if states:
            raise ModelConfigError(
                f"layer_types: {', '.join(states)}; expected full_attention and "
                "sliding_attention: a state of fixed size is not modelled"
            )
        return [
            "sliding_attention" if "sliding" in str(kind) else "full_attention"
            for kind in kinds[:layers]
        ]
    kind = str(config.get("model_type", ""))
    used = config.get("use_sliding_window", "qwen" not in kind)
    if not config.get("sliding_window") or not used:
        return ["full_attention"] * layers
    default = 2 if kind == "gemma2" else 6 if kind.startswith("gemma3") else 0
    every = config.count("sliding_window_pattern", default)
    full_from = config.count("max_window_layers", 0) if "qwen" in kind else 0
    return [
        "full_attention"
        if (every and (layer + 1) % every == 0) or layer < full_from
        else "sliding_attention"
        for layer in range(layers)
    ]


def _count_parts(config: _Config) -> _Parts:
    hidden, layers = config.count("hidden_size"), config.count("num_hidden_layers")
    kind = str(config.get("model_type", ""))
    matrices = 2 if kind in _UNGATED else 3
    intermediate = config.count("intermediate_size", 4 * hidden)
    experts = _experts(config)
    sparse = _sparse_layers(config) if experts > 1 else 0
    expert_width = config.count("moe_intermediate_size", intermediate)
    shared = _shared_width(config, expert_width)
    tied = config.get("tie_word_embeddings", kind in _TIED)
    embeddings = (1 if tied else 2) * _vocabulary(config) * hidden
    norms = (2 * layers + 1) * hidden
    return _Parts(
        attention=float(layers * _attention(config)),
        mlp=float(
            matrices * hidden * ((layers - sparse) * intermediate + sparse * shared)
        ),
        experts=float(sparse * experts * matrices * hidden * expert_width),
        plain=float(embeddings + norms + sparse * experts * hidden),
    )


def _attention(config: _Config) -> int:
    """Return the number of parameters of one layer's attention."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    latent = config.get("kv_lora_rank")
    if not latent:
        width = _head_dim(config)
        return hidden * width * (2 * heads + 2 * _kv_heads(config))
    nope, rope = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    value = config.count("v_head_dim")
    query = config.count("q_lora_rank", 0)
    queries = (
        hidden * query + query * heads * (nope + rope)
        if query
        else hidden * heads * (nope + rope)
    )
    keys = hidden * (int(latent) + rope) + int(latent) * heads * (nope + value)
    return queries + keys + heads * value * hidden


def _sparse_layers(config: _Config) -> int:
    """Return the number of layers with experts."""
    layers = config.count("num_hidden_layers")
    dense = config.get("mlp_only_layers") or []
    first = config.count("first_k_dense_replace", 0)
    step = config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step")
    every = step if isinstance(step, int) and step > 0 else 1
    return sum(
        layer >= first and layer not in dense and (layer + 1) % every == 0
        for layer in range(layers)
    )


def _shared_width(config: _Config, expert_width: int) -> int:
    """Return the width of a layer's shared experts, which process every token."""
    width = config.get("shared_expert_intermediate_size")
    if isinstance(width, int):
        return width
    if config.get("model_type") in ("llama4", "llama4_text"):
        return config.count("intermediate_size")
    return config.count("n_shared_experts", 0) * expert_width


def _weight_bytes(parts: _Parts, kept: Quantization) -> float:
    def linear(parameters: float, quantized: bool) -> float:
        return parameters * (kept.bytes_each if quantized else 2.0)

    return (
        linear(parts.attention, kept.attention)
        + linear(parts.mlp, kept.mlp)
        + linear(parts.experts, kept.experts)
        + 2 * parts.plain
    )


def _max_positions(config: _Config) -> int:
    """Return the maximum context length, scaled as in vLLM."""
    positions = config.count("max_position_embeddings", 131_072)
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaled = str(config.get("model_type", "")).startswith("gemma3")
    if scaled or not isinstance(scaling, dict):
        return positions
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    factor = scaling.get("factor")
    if kind in _UNSCALED or not isinstance(factor, int | float):
        return positions
    original = scaling.get("original_max_position_embeddings")
    base = original if isinstance(original, int) and kind == "yarn" else positions
    return int(base * factor)
