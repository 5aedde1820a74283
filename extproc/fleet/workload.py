"""The traffic of a simulation, which is the lengths and arrival times of requests.

Lengths come from the tables of public traces or from an operator's own records, always
as pairs of prompt and output, so that the dependence of outputs on prompts is kept.
Arrivals are Poisson or bursty (Gamma renewals, or a Markov-modulated Poisson process);
:mod:`extproc.fleet.replay` replays the arrivals of a file. All values are drawn in
blocks from a generator with the caller's seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from extproc.fleet import traces
from extproc.fleet.prefix_cache import Prefix

Tokens = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

#: Number of requests drawn at once, large enough for numpy and small enough to bound
#: memory.
BLOCK = 8192


class Lengths(Protocol):
    """A joint distribution of prompt and output tokens."""

    def draw(
        self, rng: np.random.Generator, n: int, *, evenly: bool = True
    ) -> tuple[Tokens, Tokens]:
        """Draw ``n`` prompts and outputs, each at least one token.

        Args:
            evenly: draw one pair from each of ``n`` equal parts of the distribution, in
                random order, so that estimates do not depend on the number of long
                requests drawn. This option is not for traffic, because rare requests
                would arrive at regular intervals and their queues would be too short.
        """


def _ranks(
    rng: np.random.Generator, n: int, *, evenly: bool
) -> npt.NDArray[np.float64]:
    """Return ranks in [0, 1), independent or evenly spaced and shuffled."""
    if not evenly:
        return rng.random(n)
    return (rng.permutation(n) + rng.random(n)) / max(n, 1)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Requests of a file, drawn with replacement."""

    prompts: Tokens
    outputs: Tokens

    def draw(
        self, rng: np.random.Generator, n: int, *, evenly: bool = True
    ) -> tuple[Tokens, Tokens]:
        """Draw whole rows, so that a prompt keeps its own output."""
        rows = (_ranks(rng, n, evenly=evenly) * len(self.prompts)).astype(int)
        return self.prompts[rows], self.outputs[rows]


@dataclass(frozen=True, slots=True)
class QuantileTable:
    """Quantiles of prompts, and of outputs for each group of prompts by length."""

    prompts: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]

    def draw(
        self, rng: np.random.Generator, n: int, *, evenly: bool = True
    ) -> tuple[Tokens, Tokens]:
        """Draw by inverse transform, with interpolation between quantiles."""
        rank = _ranks(rng, n, evenly=evenly)
        prompts = np.interp(rank, traces.PROMPT_PROBABILITIES, self.prompts)
        group = np.minimum(
            (rank * len(self.outputs)).astype(int), len(self.outputs) - 1
        )
        rank_within = rng.random(n)
        outputs = np.empty(n)
        for index, quantiles in enumerate(self.outputs):
            chosen = group == index
            outputs[chosen] = np.interp(
                rank_within[chosen], traces.OUTPUT_PROBABILITIES, quantiles
            )
        return _whole(prompts), _whole(outputs)


@dataclass(frozen=True, slots=True)
class TotalTable:
    """Cumulative shares of total tokens, divided into prompt and output by a rule."""

    points: tuple[tuple[int, float], ...]
    """Pairs of a total number of tokens and the share of requests with at most this
    total, in increasing order."""
    output_share: float
    """Share of the total that is output, limited to ``max_output_tokens``."""
    max_output_tokens: int

    def draw(
        self, rng: np.random.Generator, n: int, *, evenly: bool = True
    ) -> tuple[Tokens, Tokens]:
        """Draw totals log-linearly between the points, then divide each total."""
        shares = np.array([0.0] + [share for _, share in self.points])
        logs = np.log([2.0] + [float(tokens) for tokens, _ in self.points])
        totals = _whole(np.exp(np.interp(_ranks(rng, n, evenly=evenly), shares, logs)))
        outputs = _whole(
            np.minimum(totals * self.output_share, float(self.max_output_tokens))
        )
        return np.maximum(totals - outputs, 1), outputs


def _whole(values: npt.NDArray[np.float64]) -> Tokens:
    rounded: Tokens = np.maximum(np.rint(values), 1).astype(np.int64)
    return rounded


@dataclass(frozen=True, slots=True)
class Workload:
    """Lengths with a name and a source."""

    name: str
    lengths: Lengths
    source: str
    synthetic: bool = False
    """Whether all lengths, or those of the tail, are synthetic."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"prose": 1.0})
    """Share of requests for each kind of text (see
    :mod:`extproc.fleet.synthetic_bodies`); an assumption, since the traces do not
    contain text."""
    arrivals: Seconds | None = None
    """Recorded arrival times in seconds from the first, in increasing order, or None.
    This column and the next ones have one entry per recorded request, in the order of
    ``lengths`` (a :class:`Recorded`)."""
    cached_tokens: Tokens | None = None
    """Number of prompt tokens found in a cache; 0 if not reported."""
    hash_ids: tuple[tuple[int, ...], ...] | None = None
    """Chained hashes of the prompt's blocks (Mooncake, Bailian). Prompts with equal
    hashes have equal text up to the block's end."""
    hash_block_tokens: int | None = None
    """Number of tokens per block."""
    sessions: tuple[str | None, ...] | None = None
    """The conversation of each request; None for a request without one."""


#: The mix that the papers' authors simulate (semantic-router, fleet-sim: prose 0.60,
#: code 0.25, rag 0.15), with retrieved text as prose.
_CHAT_MIX = {"prose": 0.75, "code": 0.25}
_AZURE = "Azure LLM inference trace 2023 (CC BY 4.0), quantiles"

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "azure-code",
            QuantileTable(traces.AZURE_CODE_PROMPTS, traces.AZURE_CODE_OUTPUTS),
            f"{_AZURE} of 8,819 requests",
            mix={"code": 1.0},
        ),
        Workload(
            "azure-conv",
            QuantileTable(traces.AZURE_CONV_PROMPTS, traces.AZURE_CONV_OUTPUTS),
            f"{_AZURE} of 19,366 requests",
            mix=_CHAT_MIX,
        ),
        Workload(
            "lmsys",
            # This limit results in the mean output of the data set, 214.5 tokens.
            TotalTable(traces.LMSYS_TOTALS, output_share=0.755, max_output_tokens=320),
            "LMSYS-Chat-1M totals (semantic-router fleet-sim), outputs of mean 214.5",
            mix={"prose": 0.6, "code": 0.2, "cjk": 0.2},
        ),
        Workload(
            "agent-heavy",
            TotalTable(traces.AGENT_TOTALS, output_share=0.2, max_output_tokens=2048),
            "SWE-bench, BFCL and RAG mixture (semantic-router fleet-sim), 80/20 split",
            synthetic=True,
            mix={"structured": 0.4, "code": 0.4, "prose": 0.2},
        ),
        Workload(
            "azure-heavy",
            TotalTable(traces.HEAVY_TOTALS, output_share=0.2, max_output_tokens=2048),
            "the papers' Azure shares (80 % to 2K, 92 % to 8K, tail to 64K), 4:1 split",
            synthetic=True,
            mix=_CHAT_MIX,
        ),
    )
}


class Arrivals(Protocol):
    """A process of arrival times."""

    def __call__(self, rng: np.random.Generator) -> Iterator[Seconds]:
        """Yield blocks of increasing times in seconds, endlessly."""


@dataclass(frozen=True, slots=True)
class RenewalArrivals:
    """Independent Gamma-distributed gaps with a mean of ``1 / rate`` seconds."""

    rate: float
    """Requests a second (> 0)."""
    cv: float = 1.0
    """Coefficient of variation of the gaps (> 0), which is 1 for a Poisson process, 13
    in the Azure code trace and 1.1 in the conversation trace."""

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.cv <= 0:
            raise ValueError(f"rate: {self.rate}, cv: {self.cv}; expected > 0")

    def __call__(self, rng: np.random.Generator) -> Iterator[Seconds]:
        """Yield blocks endlessly."""
        shape = 1 / self.cv**2
        now = 0.0
        while True:
            if self.cv == 1:
                gaps = rng.exponential(1 / self.rate, BLOCK)
            else:
                gaps = rng.gamma(shape, 1 / (self.rate * shape), BLOCK)
            instants = now + np.cumsum(gaps)
            now = float(instants[-1])
            yield instants


@dataclass(frozen=True, slots=True)
class ModulatedArrivals:
    """A two-state Markov-modulated Poisson process.

    Bursts of exponentially distributed length have ``burst_factor`` (>= 1) times the
    quiet rate and take the share ``burst_share`` (in (0, 1)) of the time. The 60-second
    peak of the Azure traces is 1.5 (conversation) to 4 (code) times the mean rate.
    """

    rate: float
    """Mean number of requests a second (> 0)."""
    burst_factor: float = 3.0
    burst_share: float = 0.1
    mean_burst_s: float = 10.0
    """Mean length of a burst in seconds (> 0)."""

    def __post_init__(self) -> None:
        if (
            self.rate <= 0
            or self.burst_factor < 1
            or not 0 < self.burst_share < 1
            or self.mean_burst_s <= 0
        ):
            raise ValueError(
                f"rate: {self.rate}, burst_factor: {self.burst_factor}, burst_share: "
                f"{self.burst_share}, mean_burst_s: {self.mean_burst_s}; expected > 0, "
                ">= 1, in (0, 1), > 0"
            )

    def __call__(self, rng: np.random.Generator) -> Iterator[Seconds]:
        """Yield blocks endlessly, one period at a time."""
        share, factor = self.burst_share, self.burst_factor
        quiet_rate = self.rate / (1 - share + share * factor)
        mean_quiet_s = self.mean_burst_s * (1 - share) / share
        now, bursting = 0.0, bool(rng.random() < share)
        while True:
            length_s = rng.exponential(self.mean_burst_s if bursting else mean_quiet_s)
            mean = length_s * quiet_rate * (factor if bursting else 1)
            instants = now + length_s * np.sort(rng.random(rng.poisson(mean)))
            now, bursting = now + length_s, not bursting
            if len(instants):
                yield instants


@dataclass(frozen=True, slots=True)
class Thinned:
    """A random share of other arrivals, for one pool or a few instances."""

    arrivals: Arrivals
    share: float

    def __call__(self, rng: np.random.Generator) -> Iterator[Seconds]:
        """Keep each arrival with probability ``share``."""
        for instants in self.arrivals(rng):
            kept = instants[rng.random(len(instants)) < self.share]
            if len(kept):
                yield kept


def thinned(arrivals: Arrivals, share: float) -> Arrivals:
    """Return a random share of other arrivals; of a Poisson process, at less cost."""
    if share >= 1:
        return arrivals
    if isinstance(arrivals, RenewalArrivals) and arrivals.cv == 1:
        return RenewalArrivals(share * arrivals.rate)
    return Thinned(arrivals, share)


#: Times, prompt tokens and output tokens of consecutive requests, and the shared
#: prefixes (or None).
Block = tuple[Seconds, Tokens, Tokens, Sequence[Prefix | None] | None]


class RequestStream(Protocol):
    """Requests in order of arrival: times and lengths together."""

    @property
    def lengths(self) -> Lengths:
        """Return the lengths without the times."""

    def __call__(
        self, instants: np.random.Generator, lengths: np.random.Generator
    ) -> Iterator[Block]:
        """Yield blocks of at most ``BLOCK`` requests, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Independent:
    """Lengths that are independent of the arrival times and of each other."""

    lengths: Lengths
    arrivals: Arrivals

    def __call__(
        self, instants: np.random.Generator, lengths: np.random.Generator
    ) -> Iterator[Block]:
        """Draw times and lengths from separate generators.

        Two runs with the same seed therefore have the same lengths at any rate.
        """
        for drawn in self.arrivals(instants):
            for start in range(0, len(drawn), BLOCK):
                block = drawn[start : start + BLOCK]
                drawn_lengths = self.lengths.draw(lengths, len(block), evenly=False)
                yield (block, *drawn_lengths, None)
