"""Energy and carbon of a fleet, calculated from the steps of its instances.

Each pool is represented by one instance with its share of the traffic, which is
simulated step by step. A published curve gives a GPU's power for the number of tokens
in a step. A pure decode step has as many tokens as sequences; a step with a prompt has
hundreds, where the curve is flat. The power of hosts and cooling is added as a range,
since the exact values depend on the data center.

Power is not proportional to the number of GPUs. Fewer instances do the same work in
larger batches, so they save only the power that idle time and small batches take.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.steptime import StepTime
from extproc.fleet.workload import Arrivals, Lengths

HOURS_PER_YEAR = 8760
#: Number of requests to measure on an instance after as many others have filled it.
_WATCHED = 2000


@dataclass(frozen=True, slots=True)
class Range:
    """A lowest, a most likely and a highest value."""

    low: float
    middle: float
    high: float

    def times(self, other: "Range") -> "Range":
        """Return the product of the lowest, the likely and the highest values."""
        return Range(
            self.low * other.low, self.middle * other.middle, self.high * other.high
        )

    def scaled(self, factor: float) -> "Range":
        """Return the range multiplied by a factor (>= 0)."""
        return Range(self.low * factor, self.middle * factor, self.high * factor)

    def __str__(self) -> str:
        """Return the lowest and the highest value with three digits each."""
        return f"{_three_digits(self.low)} to {_three_digits(self.high)}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


#: Power of the host in watts per GPU, for CPUs, fans, network and power supplies. A
#: node of eight H100 draws up to 11.3 kW, and 0.7 of this in service (0.4 to 0.9, from
#: a review of "Energy use of AI inference"). If the 600 W of each GPU itself are
#: subtracted, 390 W per GPU remain (100 to 670).
HOST_WATTS = Range(100.0, 390.0, 670.0)
#: Power of the data center divided by that of its computers, from the same review.
PUE = Range(1.05, 1.2, 1.4)
#: Grams of CO2 per kWh for the grid of the United States and for hyperscale sites there
#: (arXiv 2606.05420, 2026).
GRID_G_PER_KWH = Range(370.0, 457.0, 545.0)
#: Uncertainty of a curve that was measured with one model and engine and is used for
#: other models and engines: one H100 drew 0.92 to 1.17 times its curve in prompts and
#: in decode steps of 16 to 256 sequences (tests/benchmarks/gpu_steps.py).
_CURVE_SHARE = Range(0.9, 1.0, 1.2)


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Board power of one GPU: a logistic function of log2 of the tokens in a step.

    Attributes:
        idle_w: power with the model loaded and no request running.
        low_w, high_w: power in a step of about one token, and in a step of hundreds of
            tokens.
        midpoint: log2 of the number of tokens at which power is halfway between
            ``low_w`` and ``high_w``.
        measured: whether the curve was fitted to this GPU.
    """

    idle_w: float
    low_w: float
    high_w: float
    midpoint: float
    measured: bool
    source: str

    def watts(self, tokens: float) -> float:
        """Return the power during a step with this many tokens (>= 1)."""
        rise = 1 + math.exp(self.midpoint - math.log2(max(1.0, tokens)))
        return self.low_w + (self.high_w - self.low_w) / rise


def _by_tdp(tdp_w: float, midpoint: float) -> PowerCurve:
    """Return the curve of the H100, scaled to another GPU's rated power."""
    return PowerCurve(
        0.17 * tdp_w,
        0.43 * tdp_w,
        0.86 * tdp_w,
        midpoint,
        measured=False,
        source=f"the H100's curve at a rated power of {tdp_w:g} W, as "
        "semantic-router's fleet-sim scales it",
    )


POWER_CURVES = {
    "A100-80GB": PowerCurve(
        67.0,
        175.0,
        385.0,
        2.5,
        measured=True,
        source="semantic-router, fleet-sim profiles.py (373 W measured at a batch of "
        "32, arXiv 2507.00418); idle 62 to 72 W by nvidia-smi, vLLM issue 2069",
    ),
    "H100-80GB": PowerCurve(
        116.0,
        300.0,
        600.0,
        4.2,
        measured=True,
        source="ML.ENERGY benchmark v3 on vLLM (300 W at a batch of 1, 600 W at 128), "
        "fitted in semantic-router, fleet-sim; idle as measured on one H100 with a "
        "model loaded (tests/benchmarks/gpu_steps.py)",
    ),
    "H200-141GB": _by_tdp(700.0, 4.2),
    "L40S-48GB": _by_tdp(350.0, 2.5),
    "MI300X-192GB": _by_tdp(750.0, 4.2),
}


@dataclass(frozen=True, slots=True)
class Draw:
    """Average power of one GPU of an instance, and how the GPU spends its time.

    Attributes:
        watts: average power over time, including idle time.
        idle, decode, prefill: shares of the time spent without requests, in pure decode
            steps, and in steps with a prompt.
        output_tokens_per_s: rate of output tokens of the whole instance.
    """

    watts: float
    idle: float
    decode: float
    prefill: float
    output_tokens_per_s: float


def watch(
    limits: SchedulerLimits,
    step_time: StepTime,
    arrivals: Arrivals,
    lengths: Lengths,
    curve: PowerCurve,
    seed: int,
    requests: int = _WATCHED,
) -> Draw:
    """Simulate one instance step by step, and measure it after it has filled.

    Args:
        arrivals: arrivals at this instance alone.
        requests: number of requests to measure, after the same number has filled the
            instance.
    """
    instance = Instance(limits, step_time)
    instants, draws = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)
    )
    blocks = arrivals(instants)
    meter = _Meter(curve)
    pending: list[Job] = []
    ended = 0
    while ended < 2 * requests:
        if not pending:
            pending = _jobs(next(blocks), lengths, draws, limits.max_model_len)
        if not len(instance):
            meter.idle(max(0.0, pending[-1].arrival_s - instance.now_s))
            instance.add(pending.pop())
        while pending and pending[-1].arrival_s <= instance.now_s:
            instance.add(pending.pop())
        meter.step(instance)
        ended += len(instance.finished)
        meter.end(instance.finished)
        instance.finished.clear()
        if ended >= requests and not meter.counting:
            meter.counting = True
    return meter.draw()


def _jobs(
    instants: np.ndarray, lengths: Lengths, rng: np.random.Generator, window: int
) -> list[Job]:
    """Return the requests in reverse order, so that the next one is at the end."""
    prompts, outputs = lengths.draw(rng, len(instants), evenly=False)
    prompts = np.minimum(prompts, window - 1)
    outputs = np.minimum(outputs, window - prompts)
    rows = zip(instants.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return [Job(*row) for row in rows][::-1]


class _Meter:
    """Joules and seconds for each kind of step since the measurement started."""

    def __init__(self, curve: PowerCurve) -> None:
        self.counting = False
        self._curve = curve
        self._joules = 0.0
        self._seconds = {"idle": 0.0, "decode": 0.0, "prefill": 0.0}
        self._output_tokens = 0

    def idle(self, seconds: float) -> None:
        self._add("idle", seconds, self._curve.idle_w)

    def step(self, instance: Instance) -> None:
        """Run and measure one step; it has a prompt if tokens exceed sequences."""
        busy_s, running_s = instance.busy_s, instance.running_s
        computed = instance.computed_tokens
        instance.step()
        seconds = instance.busy_s - busy_s
        if seconds <= 0:
            return
        tokens = instance.computed_tokens - computed
        seqs = round((instance.running_s - running_s) / seconds)
        kind = "prefill" if tokens > seqs else "decode"
        self._add(kind, seconds, self._curve.watts(tokens))

    def end(self, finished: Sequence[Job]) -> None:
        if self.counting:
            self._output_tokens += sum(job.output_tokens for job in finished)

    def _add(self, kind: str, seconds: float, watts: float) -> None:
        if self.counting:
            self._seconds[kind] += seconds
            self._joules += seconds * watts

    def draw(self) -> Draw:
        total_s = sum(self._seconds.values())
        shares = {kind: seconds / total_s for kind, seconds in self._seconds.items()}
        return Draw(
            self._joules / total_s, **shares,
            output_tokens_per_s=self._output_tokens / total_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """One pool, with its number of GPUs and the power of one GPU."""

    gpus: int
    gpus_per_instance: int
    draw: Draw


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy and carbon of a fleet, as ranges."""

    gpu_megawatts: float
    """Power of the boards alone."""
    megawatts: Range
    """Power including hosts and cooling."""
    kwh_per_year: Range
    joules_per_token: Range
    """Energy per output token."""
    kg_co2_per_year: Range
    """Carbon, from the operator's figure or, without one, from the grid's range.
    """


def fleet_energy(
    loads: Sequence[Load],
    *,
    host_watts: Range = HOST_WATTS,
    pue: Range = PUE,
    grid_g_per_kwh: Range = GRID_G_PER_KWH,
) -> Energy:
    """Return energy and carbon of the fleet, summed over its pools."""
    boards_w = sum(load.gpus * load.draw.watts for load in loads)
    gpus = sum(load.gpus for load in loads)
    tokens_per_s = sum(
        load.gpus / load.gpus_per_instance * load.draw.output_tokens_per_s
        for load in loads
    )
    hosts = host_watts.scaled(gpus)
    boards = _CURVE_SHARE.scaled(boards_w)
    watts = Range(
        boards.low + hosts.low, boards.middle + hosts.middle, boards.high + hosts.high
    ).times(pue)
    kwh = watts.scaled(HOURS_PER_YEAR / 1000)
    return Energy(
        boards_w / 1e6,
        watts.scaled(1e-6),
        kwh,
        watts.scaled(1 / tokens_per_s if tokens_per_s else 0.0),
        kwh.times(grid_g_per_kwh).scaled(1e-3),
    )
