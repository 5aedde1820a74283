"""Separate prefill and decode instances obey queueing laws and published findings."""

import math
from dataclasses import replace

import numpy as np
import pytest

from extproc.fleet.assignment import PoolTraffic, Tier
from extproc.fleet.disaggregation import size
from extproc.fleet.gpus import GPUS
from extproc.fleet.hardware import Deployment
from extproc.fleet.models import MODELS
from extproc.fleet.prefill_decode import KvTransfer, Parts, simulate
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.sizing import SizingTask, size_pool
from extproc.fleet.slo import Slo, idle_ttft_s, token_budget
from extproc.fleet.steptime import Linear, Roofline
from extproc.fleet.workload import Recorded, RenewalArrivals

STEP = Linear(base_s=5e-3, seq_s=1e-4, token_s=1e-5, context_s=2e-9)
LIMITS = SchedulerLimits(64, 4096, 8192, 4000)
MOVED = KvTransfer(100_000, bytes_per_s=10e9, latency_s=5e-3)
LOOSE = Slo(p99_ttft_s=5.0, p99_tpot_s=0.5)


def parts(rate: float, prompt: int = 1000, output: int = 50) -> Parts:
    lengths = Recorded(np.array([prompt]), np.array([output]))
    return Parts(LIMITS, LIMITS, STEP, MOVED, rate, RenewalArrivals(rate), lengths)


def test_alone_a_request_waits_for_prefill_transfer_and_one_step() -> None:
    """TTFT is longer than on a combined instance, by the transfer and one decode step."""
    found = simulate(parts(0.5), 1, 1, LOOSE, seed=1, measured=300)
    prefill_s = idle_ttft_s(1000, LIMITS, STEP)
    transfer_s = 5e-3 + 1000 * 100_000 / 10e9
    step_s = STEP.fixed_s(0, 1) + STEP.context_s * 999
    assert found.transfer_s == pytest.approx(transfer_s, rel=0.02)
    assert found.mean_ttft_s == pytest.approx(prefill_s + transfer_s + step_s, rel=0.03)
    assert found.mean_tpot_s == pytest.approx(step_s, rel=0.03)
    assert found.kept


def test_decoding_knows_no_prompts() -> None:
    """TPOT depends on the number of decoding requests, and not on concurrent prefills."""
    short = simulate(parts(4.0, prompt=500), 4, 1, LOOSE, seed=1, measured=1500)
    long = simulate(parts(4.0, prompt=4000), 4, 1, LOOSE, seed=1, measured=1500)
    assert long.p99_tpot_s < 1.5 * short.p99_tpot_s
    assert long.mean_ttft_s > 2 * short.mean_ttft_s


def test_littles_law_holds_of_the_decode_instances() -> None:
    found = simulate(parts(20.0), 2, 2, LOOSE, seed=3, measured=4000)
    decoding = 20.0 * 50 * found.mean_tpot_s / 2
    assert found.mean_decoding == pytest.approx(decoding, rel=0.05)
    utilization = 20.0 * idle_ttft_s(1000, LIMITS, STEP) / 2
    assert found.prefill_utilization == pytest.approx(utilization, rel=0.1)


@pytest.mark.parametrize(("prefill", "decode"), [(1, 2), (4, 1)])
def test_more_than_a_part_can_serve_is_not_steady(prefill: int, decode: int) -> None:
    overloaded = parts(110.0, output=400 if decode == 1 else 50)
    found = simulate(overloaded, prefill, decode, LOOSE, seed=2, measured=1000)
    assert not found.kept


def test_a_slow_network_is_waited_for() -> None:
    fast = simulate(parts(20.0), 2, 2, LOOSE, seed=3, measured=1000)
    narrow = replace(parts(20.0), transfer=replace(MOVED, bytes_per_s=1.4e9))
    slow = simulate(narrow, 2, 2, LOOSE, seed=3, measured=1000)
    # The network transfers ten prompts per second in 71 ms each, so it is occupied for
    # 71 % of the time.
    assert slow.transfer_s > 2 * (1000 * 100_000 / 1.4e9 - 0.02)
    assert slow.mean_ttft_s > fast.mean_ttft_s + 0.1


def test_sizes_keep_the_promises_and_the_head_room() -> None:
    task = parts(60.0)
    slo = Slo(p99_ttft_s=0.5, p99_tpot_s=0.012)
    found = size(task, slo, headroom=0.1, seed=1, measured=2000)
    assert found.met
    assert found.figures is not None
    assert found.figures.prefill_utilization <= 0.92
    assert found.figures.p99_ttft_s <= 0.5
    assert found.figures.p99_tpot_s <= 0.012
    fewer = simulate(task, found.prefill, found.decode - 1, slo, 1, 2000)
    assert not fewer.kept or found.decode == 1


def test_no_size_keeps_a_promise_below_the_idle_time() -> None:
    found = size(parts(5.0), Slo(p99_ttft_s=0.01), 0.1, seed=1, measured=500)
    assert not found.met
    assert found.figures is None
    assert found.prefill >= 1
    assert found.decode >= 1


def gpus(prompt: int, output: int, rate: float, tpot_s: float) -> tuple[int, int]:
    """Return how many instances are needed if they are combined, and if separate.

    Each instance runs Llama-3 70B on 8 x A100.
    """
    model = MODELS["Llama-3-70B"]
    deployment = Deployment(model, GPUS["A100-80GB"], 8)
    step, slo = Roofline(deployment), Slo(10.0, tpot_s)
    lengths = Recorded(np.array([prompt]), np.array([output]))
    blocks = deployment.kv_tokens(65_536) // 16

    def limits(batched: int) -> SchedulerLimits:
        return SchedulerLimits(256, batched, 65_536, blocks)

    arrivals = RenewalArrivals(rate)
    together = size_pool(
        SizingTask(
            Tier("all", limits(token_budget(step, slo)), 65_536),
            step,
            PoolTraffic(1.0, lengths),
            arrivals,
            rate,
            slo,
            1,
            3000,
            0.1,
        )
    )
    apart = size(
        Parts(
            limits(8192),
            limits(2048),
            step,
            KvTransfer.of(model),
            rate,
            arrivals,
            lengths,
        ),
        slo,
        0.1,
        1,
        2000,
    )
    assert together.met
    assert apart.met
    return together.instances, apart.instances


@pytest.mark.slow
def test_it_pays_for_long_prompts_and_a_tight_tpot_and_not_for_short_ones() -> None:
    """llm-d's guide recommends separate instances only for long prompts.

    It recommends them for 10,000 prompt and 1,000 output tokens, not for 200 and 200.
    """
    together, apart = gpus(10_000, 1000, 20, tpot_s=0.03)
    assert apart < 0.9 * together
    together, apart = gpus(200, 200, 200, tpot_s=0.05)
    assert apart >= together


def test_a_transfer_takes_its_bytes() -> None:
    model = MODELS["Llama-3-70B"]
    moved = KvTransfer.of(model, bytes_per_s=12.5e9, latency_s=0.0)
    assert moved.seconds(8192) == pytest.approx(8192 * 327_680 / 12.5e9)
    assert math.isclose(moved.wire_s(0), 0.0)
