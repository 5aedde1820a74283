"""Sizes computed from a model's config.json match its model card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from extproc.commands.hardware_options import read_model
from extproc.commands.traffic_options import OptionError
from extproc.fleet.gpus import GPUS
from extproc.fleet.hardware import Deployment
from extproc.fleet.model_config import read_model_config
from extproc.fleet.models import MODELS, check_tensor_parallel_size
from extproc.fleet.quantization import ModelConfigError
from extproc.fleet.steptime import Roofline

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_235B_FP8 = {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "max_position_embeddings": 40960,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
    },
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
    },
    "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
MISTRAL_PARAMS = {
    "dim": 5120,
    "n_layers": 40,
    "head_dim": 128,
    "hidden_dim": 32768,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 131072,
    "max_position_embeddings": 131072,
}
MIXTRAL = MISTRAL_7B | {
    "model_type": "mixtral",
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
GEMMA3_27B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
GPT_OSS_120B = {
    "model_type": "gpt_oss",
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_attention_heads": 64,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "experts_per_token": 4,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    },
}
QWEN25_AWQ = {
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
    "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq"},
}


def read(document: Any) -> Any:
    return read_model_config(document, "m")


# Model cards list all parameters, active parameters, and the checkpoint's gigabytes.
@pytest.mark.parametrize(
    ("document", "total", "active", "gigabytes"),
    [
        pytest.param(LLAMA_70B, 70.55e9, 70.55e9, 141.1, id="Llama 3.1 70B"),
        pytest.param(QWEN3_235B_FP8, 235e9, 22e9, 236.5, id="Qwen3 235B FP8"),
        pytest.param(DEEPSEEK_V3, 671e9, 37e9, 673, id="DeepSeek V3"),
        pytest.param(MISTRAL_7B, 7.24e9, 7.24e9, 14.5, id="Mistral 7B"),
        pytest.param(MISTRAL_PARAMS, 23.6e9, 23.6e9, 47.2, id="Mistral Small, params"),
        pytest.param(MIXTRAL, 46.7e9, 12.9e9, 93.4, id="Mixtral"),
        pytest.param(GEMMA3_27B, 27.0e9, 27.0e9, 54.0, id="Gemma 3 27B"),
        pytest.param(GPT_OSS_120B, 116.8e9, 5.7e9, 65.2, id="gpt-oss 120B"),
        pytest.param(QWEN25_AWQ, 72.7e9, 72.7e9, 41.6, id="Qwen2.5 72B AWQ"),
    ],
)
def test_parameters_and_weights_are_those_of_the_model_card(
    document: Any, total: float, active: float, gigabytes: float
) -> None:
    model = read(document)
    assert model.parameters == pytest.approx(total, rel=0.01)
    assert model.active_parameters == pytest.approx(active, rel=0.05)
    assert model.total_weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_a_file_gives_the_model_of_the_table() -> None:
    llama, table = read(LLAMA_70B), MODELS["Llama-3-70B"]
    assert llama.kv_bytes_per_token == table.kv_bytes_per_token == 327_680
    for gpu in GPUS.values():
        ours, theirs = (Deployment(m, gpu, 8).kv_tokens() for m in (llama, table))
        assert ours == pytest.approx(theirs, rel=0.001)
    assert (llama.fp8_compute, read(QWEN3_235B_FP8).fp8_compute) == (False, True)


def test_latent_attention_keeps_one_vector_on_every_gpu() -> None:
    """DeepSeek V3 caches 576 elements per token and layer: 70,272 bytes in 16 bits."""
    model = read(DEEPSEEK_V3)
    assert model.kv_bytes_per_token == 61 * 576 * 2 == 70_272
    assert model.kv_bytes_per_token_per_gpu(8) == 70_272
    for size in (1, 8, 16):
        check_tensor_parallel_size(model, size)
    assert Deployment(model, GPUS["H200-141GB"], 8).kv_tokens() > 300_000


def test_sliding_layers_keep_a_window() -> None:
    gemma = read(GEMMA3_27B)
    assert (gemma.sliding_layers, gemma.full_layers) == (52, 10)
    deployment = Deployment(gemma, GPUS["H100-80GB"], 1)
    everywhere = replace(deployment, model=replace(gemma, sliding_layers=0))
    assert deployment.kv_tokens(131_072) > 4 * everywhere.kv_tokens(131_072)
    assert deployment.kv_tokens(2048) == pytest.approx(
        everywhere.kv_tokens(2048), rel=0.01
    )
    step = Roofline(deployment)
    assert step.context_s == pytest.approx(
        10 / 62 * Roofline(everywhere).context_s, rel=1e-6
    )
    assert step.fixed_s(0, 100) > Roofline(everywhere).fixed_s(0, 100)
    assert read(MISTRAL_7B).sliding_layers == 32
    assert read(GPT_OSS_120B).sliding_layers == 18
    assert read(QWEN25_AWQ).sliding_layers == 0


@pytest.mark.parametrize(
    ("document", "longest"),
    [
        (LLAMA_70B, 131_072),
        (DEEPSEEK_V3, 163_840),
        (GEMMA3_27B, 131_072),
        (QWEN3_235B_FP8, 40_960),
        (
            QWEN3_235B_FP8
            | {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                }
            },
            131_072,
        ),
    ],
)
def test_the_longest_context_is_scaled_as_vllm_scales_it(
    document: Any, longest: int
) -> None:
    assert read(document).max_position_embeddings == longest


@pytest.mark.parametrize(
    ("quantization", "weights", "kv", "fp8"),
    [
        ({"quant_method": "fp8"}, 1.0, 2, True),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, 2, True),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
            1.0,
            1,
            True,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5625, 2, False),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, 2, False),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, 2, False),
        (
            {
                "quant_method": "compressed-tensors",
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "float"},
                        "input_activations": {"num_bits": 8, "type": "float"},
                    }
                },
            },
            1.0,
            1,
            True,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "group_size": 128}}
                },
            },
            0.5156,
            2,
            False,
        ),
        (None, 2.0, 2, False),
    ],
)  # fmt: skip
def test_quantization_is_what_the_file_says(
    quantization: Any, weights: float, kv: float, fp8: bool
) -> None:
    model = read(LLAMA_70B | {"quantization_config": quantization})
    plain = 2 * 128_256 * 8192 + 161 * 8192
    linear = (model.total_weight_bytes - 2 * plain) / (model.parameters - plain)
    assert linear == pytest.approx(weights, rel=1e-3)
    assert (model.kv_bytes, model.fp8_compute) == (kv, fp8)


def test_the_kv_cache_dtype_is_the_operators_if_given() -> None:
    fp8 = read_model_config(LLAMA_70B, "m", kv_cache_dtype="fp8")
    assert fp8.kv_bytes_per_token == 163_840


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "config: not a JSON object; expected config.json"),
        ({}, "hidden_size|num_hidden_layers: missing; expected one of"),
        (LLAMA_70B | {"num_hidden_layers": 0}, "num_hidden_layers: 0; expected"),
        (LLAMA_70B | {"hidden_size": "big"}, "hidden_size: 'big'; expected"),
        (
            LLAMA_70B | {"quantization_config": {"quant_method": "aqlm"}},
            "quantization_config.quant_method: aqlm; expected fp8",
        ),
        (
            LLAMA_70B | {"layer_types": ["linear_attention", "full_attention"]},
            "layer_types: linear_attention; expected full_attention",
        ),
    ],
)
def test_what_gives_no_model_is_named(document: Any, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        read(document)


def test_a_model_is_a_name_a_file_or_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "My-Model"
    directory.mkdir()
    path = directory / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    assert read_model(str(directory)) == read_model(str(path))
    assert read_model(str(path)).name == "My-Model"
    assert read_model("Llama-3-70B") is MODELS["Llama-3-70B"]
    assert read_model("Llama-3-70B", "fp8").kv_bytes == 1
    with pytest.raises(OptionError, match="--model: nothing; expected one of Llama"):
        read_model("nothing")
    path.write_text("{")
    with pytest.raises(OptionError, match=r"--model: .*config\.json: "):
        read_model(str(path))
