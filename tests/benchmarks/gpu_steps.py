"""Measure steps on a real GPU and compare them with the planner's time and power.

    python tests/benchmarks/gpu_steps.py [--gpu H100-80GB] [--seconds 3]

A decoder with the shape of Llama 3.1 8B and random weights runs in PyTorch. Decode steps
are CUDA graphs, as in vLLM; prompts are single chunks. The step time does not depend on
the values of the weights. The program prints one row for each step: the measured time
and power beside those of ``Roofline`` and ``PowerCurve``, and the idle power with the
model loaded. Power is the change of the driver's energy counter divided by the time.

Requires an NVIDIA GPU, PyTorch with CUDA, and nvidia-ml-py.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pynvml
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2]))  # runs without installation

from extproc.fleet.energy import POWER_CURVES
from extproc.fleet.gpus import GPUS
from extproc.fleet.hardware import Deployment
from extproc.fleet.models import MODELS, Model
from extproc.fleet.steptime import Roofline

BATCHES = 1, 4, 16, 32, 64, 128, 256
CONTEXTS = 512, 2048
CHUNKS = 256, 512, 1024, 2048, 4096, 8192
CACHE_TOKENS = 280_000
"""Number of tokens whose keys and values are allocated: 37 GB for Llama 3.1 8B."""
WARM_UP_STEPS = 3


class Decoder:
    """A decoder with random weights and a cache of keys and values.

    Every sequence of a batch has the same context. The cache of each batch is a view of
    the same memory, whose values do not affect the time.
    """

    def __init__(self, model: Model, cache_tokens: int, device: str) -> None:
        self.model = model
        self._device = device
        width, heads = model.hidden_size, model.num_attention_heads * model.head_dim
        self._kv = model.num_key_value_heads * model.head_dim
        shapes = {
            "qkv": (width, heads + 2 * self._kv),
            "out": (heads, width),
            "gate_up": (width, 2 * model.intermediate_size),
            "down": (model.intermediate_size, width),
        }
        self._layers = [
            {name: self._random(*shape) for name, shape in shapes.items()}
            for _ in range(model.num_hidden_layers)
        ]
        self._head = self._random(width, model.vocab_size)
        self._cache = [
            self._random(2, cache_tokens * self._kv)
            for _ in range(model.num_hidden_layers)
        ]

    def _random(self, *shape: int) -> Any:
        scale = 1 / math.sqrt(shape[0])
        drawn = torch.empty(shape, device=self._device, dtype=torch.bfloat16)
        return drawn.normal_(0.0, scale)

    def decode(self, tokens: Any, context: int) -> Any:
        """Generate one token for each sequence, whose hidden states are ``tokens``."""
        batch, groups = len(tokens), self.model.num_key_value_heads
        size = self.model.head_dim
        shape = batch * groups, context, size
        for weights, cache in zip(self._layers, self._cache, strict=True):
            qkv = _normalized(tokens) @ weights["qkv"]
            query, key, value = qkv.split((len(weights["out"]), self._kv, self._kv), 1)
            keys, values = cache[:, : math.prod(shape)].view(2, *shape)
            keys[:, -1] = key.reshape(-1, size)
            values[:, -1] = value.reshape(-1, size)
            scores = query.reshape(batch * groups, -1, size) @ keys.transpose(1, 2)
            found = (scores / math.sqrt(size)).softmax(-1) @ values
            tokens = tokens + found.reshape(batch, -1) @ weights["out"]
            tokens = tokens + _mlp(tokens, weights)
        return (_normalized(tokens) @ self._head).argmax(-1)

    def prefill(self, tokens: Any) -> Any:
        """Process one prompt in one chunk, and generate its first token."""
        size = self.model.head_dim
        for weights, cache in zip(self._layers, self._cache, strict=True):
            qkv = _normalized(tokens) @ weights["qkv"]
            query, key, value = (
                part.view(1, len(tokens), -1, size).transpose(1, 2)
                for part in qkv.split((len(weights["out"]), self._kv, self._kv), 1)
            )
            cache[0, : key.numel()] = key.reshape(-1)
            cache[1, : value.numel()] = value.reshape(-1)
            found = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            found = found.transpose(1, 2).reshape(len(tokens), -1)
            tokens = tokens + found @ weights["out"]
            tokens = tokens + _mlp(tokens, weights)
        return (_normalized(tokens[-1:]) @ self._head).argmax(-1)

    def hidden(self, tokens: int) -> Any:
        """Return random hidden states of a number of tokens."""
        return self._random(tokens, self.model.hidden_size)


def _normalized(tokens: Any) -> Any:
    return functional.rms_norm(tokens, tokens.shape[-1:])


def _mlp(tokens: Any, weights: dict[str, Any]) -> Any:
    gate, up = (_normalized(tokens) @ weights["gate_up"]).chunk(2, -1)
    return (functional.silu(gate) * up) @ weights["down"]


class Meter:
    """The first GPU's clock and energy counter."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.memory_mib = pynvml.nvmlDeviceGetMemoryInfo(self._handle).total >> 20

    def idle_w(self, seconds: float) -> float:
        """Return the power in watts while nothing runs."""
        torch.cuda.synchronize()
        time.sleep(1.0)  # until the clocks have fallen
        before_j, began_s = self._joules(), time.perf_counter()
        time.sleep(seconds)
        return (self._joules() - before_j) / (time.perf_counter() - began_s)

    def measure(self, step: Callable[[], Any], seconds: float) -> tuple[float, float]:
        """Repeat a step for some seconds; return its mean time and the power in watts."""
        for _ in range(WARM_UP_STEPS):
            step()
        torch.cuda.synchronize()
        before_j, began_s = self._joules(), time.perf_counter()
        steps, elapsed_s = 0, 0.0
        while elapsed_s < seconds:
            for _ in range(8):  # the queue of the GPU never runs empty
                step()
            steps += 8
            torch.cuda.synchronize()
            elapsed_s = time.perf_counter() - began_s
        return elapsed_s / steps, (self._joules() - before_j) / elapsed_s

    def _joules(self) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000


def graph(step: Callable[[], Any]) -> Callable[[], Any]:
    """Return a CUDA graph of a step, without the launches of its kernels."""
    step()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu", default="H100-80GB", choices=GPUS)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    args = parser.parse_args()
    model, curve = MODELS["Llama-3.1-8B"], POWER_CURVES[args.gpu]
    roofline = Roofline(Deployment(model, GPUS[args.gpu], 1))
    meter = Meter()
    print(f"{torch.cuda.get_device_name()}, {meter.memory_mib} MiB, ", end="")
    print(f"PyTorch {torch.__version__}; {model.name}'s shape in bfloat16")
    decoder = Decoder(model, CACHE_TOKENS, "cuda")
    print(f"idle: {meter.idle_w(args.seconds):.0f} W; curve {curve.idle_w:.0f} W")
    print("\n| step | measured ms | planner | measured W | curve |")
    print("|---|---|---|---|---|")

    def row(name: str, step: Callable[[], Any], expected_s: float, tokens: int) -> None:
        step_s, watts = meter.measure(step, args.seconds)
        print(f"| {name} | {step_s * 1e3:.2f} | {expected_s * 1e3:.2f} ", end="")
        print(f"| {watts:.0f} | {curve.watts(tokens):.0f} |", flush=True)

    with torch.inference_mode():
        for context in CONTEXTS:
            for batch in BATCHES:
                if batch * context > CACHE_TOKENS:
                    continue
                states = decoder.hidden(batch)
                expected_s = roofline.fixed_s(0, batch)
                expected_s += roofline.context_s * batch * context
                step = graph(partial(decoder.decode, states, context))
                name = f"decode, batch {batch} at {context:,} tokens"
                row(name, step, expected_s, batch)
        for chunk in CHUNKS:
            states = decoder.hidden(chunk)
            expected_s = roofline.fixed_s(chunk, 0) + roofline.pair_s * chunk**2 / 2
            step = partial(decoder.prefill, states)
            row(f"prompt of {chunk:,} tokens", step, expected_s, chunk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
