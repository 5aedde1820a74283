"""Distributions and arrivals match their published figures."""

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from extproc.fleet.usage_log import read_records
from extproc.fleet.workload import (
    BLOCK,
    WORKLOADS,
    Independent,
    ModulatedArrivals,
    Recorded,
    RenewalArrivals,
    Thinned,
    Workload,
    thinned,
)

SHARED = Path(
    os.environ.get("EXTPROC_SHARED", Path(__file__).parents[2].parent / "shared")
)
DRAWS = 200_000
# From the trace: the mean prompt, the mean output, and the shares of requests with a
# total of up to 2K, 4K and 6K tokens.
PUBLISHED = {
    "azure-code": (2048, 28, 0.618, 0.857, 0.925),
    "azure-conv": (1155, 211, 0.853, 0.917, 0.999),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_azure_tables_have_the_figures_of_the_trace(name: str) -> None:
    prompt, output, *shares = PUBLISHED[name]
    prompts, outputs = WORKLOADS[name].lengths.draw(np.random.default_rng(1), DRAWS)
    assert prompts.mean() == pytest.approx(prompt, rel=0.01)
    assert outputs.mean() == pytest.approx(output, rel=0.05)
    totals = prompts + outputs
    for threshold, share in zip((2048, 4096, 6144), shares, strict=True):
        assert (totals <= threshold).mean() == pytest.approx(share, abs=0.01)
    assert (totals <= 8192).mean() >= 0.9998


def test_lmsys_has_its_totals_and_its_mean_response() -> None:
    prompts, outputs = WORKLOADS["lmsys"].lengths.draw(np.random.default_rng(1), DRAWS)
    totals = prompts + outputs
    assert outputs.mean() == pytest.approx(214.5, rel=0.02)
    assert (totals <= 2048).mean() == pytest.approx(0.948, abs=0.003)
    assert (totals <= 8192).mean() == pytest.approx(0.9965, abs=0.001)
    assert np.median(totals) == pytest.approx(373, rel=0.1)


def test_the_heavy_tail_is_the_papers_and_says_that_it_is_synthetic() -> None:
    heavy = WORKLOADS["azure-heavy"]
    prompts, outputs = heavy.lengths.draw(np.random.default_rng(1), DRAWS)
    totals = prompts + outputs
    assert heavy.synthetic
    assert (totals <= 2048).mean() == pytest.approx(0.80, abs=0.005)
    assert (totals <= 8192).mean() == pytest.approx(0.92, abs=0.005)
    assert totals.max() <= 65_536


@pytest.mark.parametrize("name", WORKLOADS)
def test_draws_are_whole_positive_and_repeatable(name: str) -> None:
    first, again = (
        WORKLOADS[name].lengths.draw(np.random.default_rng(7), 1000) for _ in range(2)
    )
    assert all(part.min() >= 1 and part.dtype == np.int64 for part in first)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert sum(WORKLOADS[name].mix.values()) == pytest.approx(1)


def test_recorded_prompts_keep_their_outputs() -> None:
    lengths = Recorded(np.array([1, 2, 3]), np.array([10, 20, 30]))
    prompts, outputs = lengths.draw(np.random.default_rng(0), 100)
    assert (outputs == 10 * prompts).all()


@pytest.mark.parametrize("name", ["code", "conv"])
def test_tables_agree_with_the_published_file(name: str) -> None:
    path = SHARED / f"data/traces/AzureLLMInferenceTrace_{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as file:
        records = read_records(file, path.name)
    assert records.skipped == 0
    theirs, ours = (
        sum(workload.lengths.draw(np.random.default_rng(1), DRAWS))
        for workload in (records.workload, WORKLOADS[f"azure-{name}"])
    )
    for quantile in (0.5, 0.9, 0.99):
        assert np.quantile(ours, quantile) == pytest.approx(
            np.quantile(theirs, quantile), rel=0.04
        )
    assert records.workload.arrivals is not None
    assert records.workload.arrivals[0] == 0


def gaps(arrivals, blocks: int = 30):
    drawn = arrivals(np.random.default_rng(3))
    instants = np.concatenate([next(drawn) for _ in range(blocks)])
    assert (np.diff(instants) >= 0).all()
    return np.diff(instants)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_renewal_arrivals_have_their_rate_and_cv(cv: float) -> None:
    found = gaps(RenewalArrivals(50, cv))
    assert found.mean() == pytest.approx(1 / 50, rel=0.05)
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)


def test_modulated_arrivals_have_their_rate_and_their_bursts() -> None:
    arrivals = ModulatedArrivals(200, burst_factor=5, burst_share=0.2, mean_burst_s=5)
    drawn = arrivals(np.random.default_rng(5))
    instants = np.concatenate([next(drawn) for _ in range(800)])
    per_second = np.bincount(instants.astype(int))
    assert per_second.mean() == pytest.approx(200, rel=0.07)
    # A Poisson process would have a variance-to-mean ratio of 1.
    assert per_second.var() / per_second.mean() > 20


def test_arrivals_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="expected > 0"):
        RenewalArrivals(0)
    with pytest.raises(ValueError, match="burst_share: 1"):
        ModulatedArrivals(1, burst_share=1)


def test_a_workload_without_a_mix_is_prose() -> None:
    lengths = Recorded(np.array([1]), np.array([1]))
    assert Workload("w", lengths, "here").mix == {"prose": 1.0}


def test_a_thinned_process_keeps_its_share_of_the_rate() -> None:
    found = gaps(Thinned(RenewalArrivals(50, cv=4), 0.25))
    assert found.mean() == pytest.approx(1 / 12.5, rel=0.05)
    # Thinning brings the gaps closer to those of a Poisson process: cv^2 = 1 + share *
    # (16 - 1).
    assert found.std() / found.mean() == pytest.approx((1 + 0.25 * 15) ** 0.5, rel=0.1)


def test_a_thinned_poisson_process_is_one_of_a_lower_rate() -> None:
    poisson, bursty = RenewalArrivals(50), RenewalArrivals(50, cv=4)
    assert thinned(poisson, 0.25) == RenewalArrivals(12.5)
    assert thinned(bursty, 0.25) == Thinned(bursty, 0.25)
    assert thinned(poisson, 1.0) is poisson
    assert gaps(Thinned(poisson, 0.25)).std() == pytest.approx(1 / 12.5, rel=0.05)


def test_long_requests_come_as_irregularly_as_any() -> None:
    """The number of long requests (1 % of all) in a block is Poisson-distributed, not
    fixed.
    """
    lengths = Recorded(np.arange(1, 101), np.ones(100, np.int64))
    stream = Independent(lengths, RenewalArrivals(100.0))
    blocks = stream(np.random.default_rng(1), np.random.default_rng(2))
    counts = [
        int((prompts == 100).sum())
        for _, prompts, _, _ in itertools.islice(blocks, 400)
    ]
    assert np.mean(counts) == pytest.approx(BLOCK / 100, rel=0.05)
    assert np.var(counts) / np.mean(counts) == pytest.approx(1, abs=0.25)


def test_an_even_draw_holds_each_part_of_the_distribution_once() -> None:
    lengths = Recorded(np.arange(1, 101), np.ones(100, np.int64))
    prompts, _ = lengths.draw(np.random.default_rng(1), 100)
    assert sorted(prompts) == list(range(1, 101))
    drawn, _ = lengths.draw(np.random.default_rng(1), 100, evenly=False)
    assert len(set(drawn)) < 80
