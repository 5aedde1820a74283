"""The duration of one step of a vLLM instance.

The duration is calculated from a roofline model with data-sheet rates, from the papers'
constants, or from a plane fitted to measurements (``extproc profile``).
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from extproc.fleet.hardware import Deployment


class StepTime(Protocol):
    """A model of the duration of one step of an instance.

    The duration depends linearly on context, so a series of pure decode steps has a
    closed form.
    """

    @property
    def context_s(self) -> float:
        """Seconds per token of context that a decoding sequence reads (>= 0)."""

    @property
    def pair_s(self) -> float:
        """Seconds per pair of a chunk's token and a token that it attends to (>= 0)."""

    def fixed_s(self, prefill_tokens: int, decode_seqs: int) -> float:
        """Return the seconds independent of context: weights, matrices, overhead."""


def steps_until(span_s: float, first_s: float, growth_s: float) -> int:
    """Return the minimum number of steps, at least 1, that last ``span_s`` or longer.

    The steps last ``first_s`` (> 0), ``first_s + growth_s``, ... (``growth_s`` >= 0).
    """
    slope = first_s - growth_s / 2
    root = math.sqrt(slope * slope + 2 * growth_s * span_s)
    return max(1, math.ceil(2 * span_s / (slope + root) - 1e-9))


@dataclass(frozen=True, slots=True)
class Roofline:
    """Step time from peak rates and efficiency factors.

    Matrices take the time of computing or of reading the weights once, whichever is
    longer. Attention follows, which reads the cached keys and values of decoding
    sequences and computes the chunks of prompts. Tensor parallelism adds two
    all-reduces per layer.
    """

    deployment: Deployment
    bandwidth_efficiency: float = 0.8
    """Achieved share of the peak memory bandwidth. The papers' authors use 0.8
    (semantic-router, fleet_sim ProfileBuilder: a step of 10.9 ms for 141 GB of weights
    on eight A100). With 0.8, decode steps of PyTorch on one H100 took 0.90 to 1.06
    times the calculated time (tests/benchmarks/gpu_steps.py)."""
    compute_efficiency: float = 0.5
    """Share of the peak FLOP/s that prefill achieves; 0.5 is an assumption in the
    middle of published values for large prompts. PyTorch without an engine achieved
    0.59 to 0.66 on one H100 for prompts of 512 to 8,192 tokens."""
    all_reduce_s: float = 10e-6
    """Latency of one small all-reduce over NVLink, an assumption."""
    network_all_reduce_s: float = 40e-6
    """Latency of one all-reduce across nodes, an assumption. The bandwidth of such an
    all-reduce is that of the network, a tenth of NVLink's."""
    overhead_s: float = 1e-3
    """Time to schedule, sample and launch a step, an assumption."""
    # Terms of fixed_s, stored because a simulation calls fixed_s for every step:
    # seconds for each token's matrices, for reading all weights, for each decoding
    # sequence's windows, and for the all-reduces per step and per token.
    _matrices_s: float = field(init=False, repr=False, compare=False)
    _weights_s: float = field(init=False, repr=False, compare=False)
    _windows_s: float = field(init=False, repr=False, compare=False)
    _latency_s: float = field(init=False, repr=False, compare=False)
    _moved_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, gpus = self.deployment.model, self.deployment.tensor_parallel_size
        latency_s, moved_s = self._all_reduces_s()
        weights = model.total_weight_bytes / gpus
        parts = {
            "_matrices_s": 2 * model.active_parameters / self._flops,
            "_weights_s": weights / self._bytes_per_s,
            "_windows_s": self._window_bytes / self._bytes_per_s,
            "_latency_s": self.overhead_s + latency_s,
            "_moved_s": moved_s,
        }
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    @property
    def _bytes_per_s(self) -> float:
        return self.deployment.gpu.memory_bytes_per_s * self.bandwidth_efficiency

    @property
    def _flops(self) -> float:
        """FLOP/s of the whole instance."""
        gpu = self.deployment.gpu
        fp8 = self.deployment.model.fp8_compute
        peak = gpu.fp8_flops if fp8 else gpu.bf16_flops
        return peak * self.compute_efficiency * self.deployment.tensor_parallel_size

    @property
    def context_s(self) -> float:
        """Time to read one cached token's keys and values, on all GPUs in parallel.

        Only layers that attend to the whole context count, because the reads of a
        sliding-window layer do not grow with context (see ``fixed_s``).
        """
        model = self.deployment.model
        per_gpu = model.kv_bytes_per_token_per_gpu(self.deployment.tensor_parallel_size)
        return per_gpu / self._bytes_per_s

    @property
    def pair_s(self) -> float:
        """Time for a pair's query-key and value products, 4 FLOP per head dimension."""
        model = self.deployment.model
        width = model.num_attention_heads * model.head_dim
        attention_flops = (
            self.deployment.gpu.bf16_flops
            * self.compute_efficiency
            * self.deployment.tensor_parallel_size
        )
        return 4 * model.full_layers * width / attention_flops

    def fixed_s(self, prefill_tokens: int, decode_seqs: int) -> float:
        """Return the time for matrices, all-reduces and overhead of a step."""
        tokens = prefill_tokens + decode_seqs
        matrices_s = self._matrices_s * tokens
        weights_s = self._weights_s
        if self.deployment.model.num_experts > 1:
            weights_s *= self._read_share(tokens)
        return (
            (matrices_s if matrices_s > weights_s else weights_s)
            + self._windows_s * decode_seqs
            + self._moved_s * tokens
            + self._latency_s
        )

    @property
    def _window_bytes(self) -> float:
        """Bytes of the attention windows that a decoding sequence reads."""
        model = self.deployment.model
        layer = model.layer_kv_bytes_per_gpu(self.deployment.tensor_parallel_size)
        return model.sliding_layers * model.sliding_window * layer

    def _read_share(self, tokens: int) -> float:
        """Return the share of the weights read in a step, without unused experts."""
        model = self.deployment.model
        missed = (1 - model.experts_per_token / model.num_experts) ** tokens
        routed = model.experts_per_token / model.num_experts
        # active = dense + routed * experts, all = dense + experts
        experts = (model.parameters - model.active_parameters) / (1 - routed)
        return 1 - missed * experts / model.parameters

    def _all_reduces_s(self) -> tuple[float, float]:
        """Return the time per step and per token of two ring all-reduces per layer."""
        gpus = self.deployment.tensor_parallel_size
        if gpus == 1:
            return 0.0, 0.0
        model = self.deployment.model
        moved = 2 * (gpus - 1) / gpus * model.hidden_size * 2
        gpu = self.deployment.gpu
        within = gpus <= gpu.gpus_per_node
        latency_s = self.all_reduce_s if within else self.network_all_reduce_s
        bytes_per_s = gpu.link_bytes_per_s if within else gpu.network_bytes_per_s
        reduces = 2 * model.num_hidden_layers
        return reduces * latency_s, reduces * moved / bytes_per_s


@dataclass(frozen=True, slots=True)
class Linear:
    """Step time as a plane, which is the papers' model and the result of a profile.

    ``base_s + seq_s * decoding sequences + token_s * prompt tokens``, plus the context
    terms of :class:`StepTime`.
    """

    base_s: float
    seq_s: float
    token_s: float = 0.0
    context_s: float = 0.0
    pair_s: float = 0.0

    def fixed_s(self, prefill_tokens: int, decode_seqs: int) -> float:
        """Return the value of the plane for a batch."""
        return self.base_s + self.seq_s * decode_seqs + self.token_s * prefill_tokens


#: "W + H n" of the papers' simulators, for a step of n sequences, as in
#: vllm-project/semantic-router, fleet_sim/gpu_profiles/profiles.py (H at 8,192 tokens
#: of context; its later versions scale H by the mean length, but the papers do not).
PAPER_STEP_TIMES = {
    "A100-80GB": Linear(base_s=8.0e-3, seq_s=0.65e-3),
    "H100-80GB": Linear(base_s=4.0e-3, seq_s=0.32e-3),
}

#: Number of KV tokens of one instance in the same file, 65,536 blocks of 16.
PAPER_KV_TOKENS = 65_536 * 16


def paper_step_time(gpu: str, chunk_tokens: int = 512) -> Linear:
    """Return the papers' W and H for an engine that schedules like vLLM.

    The papers' engine prefills ``chunk_tokens`` per sequence and step in the time of
    one decoding sequence, so a prompt token takes H / ``chunk_tokens``.
    """
    known = PAPER_STEP_TIMES[gpu]
    return Linear(known.base_s, known.seq_s, known.seq_s / chunk_tokens)
