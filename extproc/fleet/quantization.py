"""The effect of a ``quantization_config`` on weights and KV cache."""

import math
from dataclasses import dataclass
from typing import Any

from extproc.json_object import JsonObject


class ModelConfigError(ValueError):
    """An unusable configuration; the message has key, value and expectation."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """The storage format of linear layers.

    Attributes:
        bytes_each: bytes per parameter, including scales.
        attention, mlp, experts: whether each kind of layer is quantized.
    """

    bytes_each: float = 2.0
    fp8_compute: bool = False
    attention: bool = True
    mlp: bool = True
    experts: bool = True


def read_quantization(document: Any) -> Quantization:
    """Return the storage format of linear layers from a ``quantization_config``.

    Raises:
        ModelConfigError: the method is unknown.
    """
    if not isinstance(document, dict):
        return Quantization()
    method = str(document.get("quant_method") or document.get("quant_algo") or "")
    each, fp8 = _bytes_each(method.lower(), document)
    skipped = " ".join(
        str(module)
        for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude")
        for module in _listed(document.get(key))
    )
    return Quantization(
        each,
        fp8,
        attention="self_attn" not in skipped and "attn" not in skipped.split(),
        mlp=method != "mxfp4",
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bytes_each(method: str, document: JsonObject) -> tuple[float, bool]:
    """Return the bytes of a quantized parameter, and whether products are in 8 bits."""
    algorithm = str(document.get("quant_algo") or method).lower()
    if method in ("fp8", "fbgemm_fp8", "modelopt") and "fp4" not in algorithm:
        block = document.get("weight_block_size")
        scales = 4 / math.prod(block) if isinstance(block, list) and block else 0.0
        return 1 + scales, True
    if "fp4" in algorithm:
        # Four bits per weight, plus an 8-bit scale for each group of 32 (MX) or 16
        # (NVIDIA) weights.
        return 0.5 + 1 / (32 if "mx" in algorithm else 16), False
    if method == "compressed-tensors":
        return _compressed(document)
    if method in ("awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round"):
        bits = document.get("bits") or document.get("w_bit") or 4
        group = document.get("group_size") or document.get("q_group_size") or 128
        # Each group adds a 16-bit scale and a zero point with the weights' number of
        # bits.
        extra = (16 + bits) / group if group > 0 else 0.0
        return (bits + extra) / 8, False
    if method in ("bitsandbytes", "bnb"):
        return (1.0 if document.get("load_in_8bit") else 0.5 + 1 / 16), False
    if method == "":
        return 2.0, False
    raise ModelConfigError(
        f"quantization_config.quant_method: {method}; expected fp8, awq, gptq, "
        "compressed-tensors, modelopt, mxfp4 or bitsandbytes"
    )


def _compressed(document: JsonObject) -> tuple[float, bool]:
    """Return ``_bytes_each`` for the first group of a compressed-tensors file."""
    groups = document.get("config_groups")
    group: JsonObject = {}
    if isinstance(groups, dict) and groups:
        group = next(iter(groups.values()))
    weights = group.get("weights") or {}
    bits = weights.get("num_bits") or 8
    size = weights.get("group_size") or 0
    inputs = group.get("input_activations") or {}
    return (bits + (16 / size if size > 0 else 0)) / 8, (
        bits == 8 and inputs.get("num_bits") == 8
    )


def kv_element_bytes(kv_cache_dtype: str, document: Any) -> float:
    """Return the bytes of an element of the KV cache."""
    if kv_cache_dtype != "auto":
        return 1.0 if kv_cache_dtype.startswith("fp8") else 2.0
    if not isinstance(document, dict):
        return 2.0
    scheme = document.get("kv_cache_scheme")
    bits = scheme.get("num_bits") if isinstance(scheme, dict) else None
    algorithm = str(document.get("kv_cache_quant_algo") or "").lower()
    return 1.0 if bits == 8 or algorithm == "fp8" else 2.0
