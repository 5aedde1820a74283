"""The inputs of a plan, and the policies that it compares.

The policies are as follows:

- ``homogeneous-worst-case``: one pool whose ``max_num_seqs`` is the number of sequences
  of ``max_model_len`` tokens that fit, the papers' baseline;
- ``homogeneous-paged``: the same pool with vLLM's default ``max_num_seqs``. vLLM
  allocates KV blocks on demand, so this is the most common deployment;
- ``homogeneous-short-limit``: one pool with the short pool's ``max_model_len``, which
  rejects longer prompts and truncates longer answers;
- ``split``: pools by threshold behind the shipped router, with the ``max_num_seqs`` of
  ``homogeneous-paged``;
- ``split-worst-case``: the same pools with worst-case ``max_num_seqs``, the papers'
  split;
- ``split-oracle``, ``split-prompt-length``, ``split-bytes/4``: the same pools behind
  other routers.

The difference between ``homogeneous-worst-case`` and ``homogeneous-paged`` is what is
saved by not sizing for the worst case. The difference between ``homogeneous-paged`` and
``split`` is what the split itself saves or costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from extproc.fleet.assignment import Tier
from extproc.fleet.declared import Declared
from extproc.fleet.replay import Replay
from extproc.fleet.sizing import DEFAULT_MAX_NUM_SEQS, Engine
from extproc.fleet.slo import Slo, long_promise_s, token_budget
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Arrivals, Independent, RequestStream, Workload

#: Default for the minimum number of requests to measure in the whole fleet.
VERIFIED_REQUESTS = 40_000
#: Default share of the saturated rate to leave free.
DEFAULT_HEADROOM = 0.1
_DRAWS = 200_000
POOL_NAMES = {2: ("short", "long"), 3: ("short", "medium", "long")}


@dataclass(frozen=True, slots=True)
class PoolHardware:
    """One instance of a pool, with the limits that follow from its GPU."""

    engine: Engine
    max_num_seqs: int
    """Limit of sequences, if the pool is not sized for the worst case."""
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Question:
    """The inputs of a plan.

    Attributes:
        rate: mean arrival rate, in requests a second.
        arrivals: arrival times that are independent of lengths, or a replayed file.
        thresholds: limits of the pools below the last one, in increasing order; each
            pool accepts budgets up to its own limit.
        max_model_len: window of the last pool, and of homogeneous pools.
        max_num_batched_tokens: value for every instance.
        max_num_seqs: value for pools not sized for the worst case.
        asked_requests, tried_requests, verified_requests: numbers of requests: those
            that a strategy assigns, those measured for each size tried, and those
            measured in the whole fleet at the end.
        headroom: share of each pool's saturated rate to leave free.
        traffic: a sentence for the operator on how the arrivals were chosen.
        pool_hardware: hardware of those pools of the split whose GPUs differ from
            ``engine``'s, by pool name.
        long_promise_given: whether the operator specified ``slo.long_ttft_s``; if not,
            the last pool's limit is derived from its own requests.
    """

    workload: Workload
    engine: Engine
    rate: float
    arrivals: Arrivals | Replay
    slo: Slo
    thresholds: tuple[int, ...]
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    declared: Declared = Declared.EXACT
    variation_factor: float = 1.0
    seed: int = 42
    asked_requests: int = 20_000
    tried_requests: int = 12_000
    verified_requests: int = VERIFIED_REQUESTS
    headroom: float = DEFAULT_HEADROOM
    traffic: str = ""
    long_promise_given: bool = False
    pool_hardware: Mapping[str, PoolHardware] = field(default_factory=dict)

    def hardware(self, pool: str) -> PoolHardware:
        """Return the hardware of the pool of this name."""
        own = PoolHardware(self.engine, self.max_num_seqs, self.max_num_batched_tokens)
        return self.pool_hardware.get(pool, own)

    @property
    def pool_names(self) -> tuple[str, ...]:
        """Return the names of the pools, in increasing order of their windows."""
        ends = (*self.thresholds, self.max_model_len)
        return POOL_NAMES.get(len(ends), tuple(f"up-to-{end}" for end in ends))

    @property
    def stream(self) -> RequestStream:
        """Return arrival times and lengths together."""
        if isinstance(self.arrivals, Replay):
            return self.arrivals
        return Independent(self.workload.lengths, self.arrivals)


@dataclass(frozen=True, slots=True)
class Setting:
    """The values from which the SLO and the token budget are derived."""

    workload: Workload
    engine: Engine
    threshold: int
    """Number of tokens above which a request counts as long."""
    max_model_len: int
    max_num_batched_tokens: int | None
    """None to choose the largest value that meets the TPOT limit."""
    seed: int


def complete_slo(
    slo: Slo, setting: Setting, long_ttft_s: float | None = None
) -> tuple[Slo, int]:
    """Derive the TTFT of long requests and the token budget if they are not given.

    Args:
        long_ttft_s: TTFT of long requests, if given.

    Raises:
        ValueError: not even one request of ``max_model_len`` fits.
    """
    engine = setting.engine
    budget = setting.max_num_batched_tokens or token_budget(engine.step_time, slo)
    limits = engine.limits(setting.max_model_len, None, budget)
    if long_ttft_s is None:
        prompts, outputs = setting.workload.lengths.draw(
            np.random.default_rng(setting.seed), _DRAWS
        )
        long = prompts[prompts + outputs > setting.threshold]
        long_ttft_s = long_promise_s(long, limits, engine.step_time, slo.p99_ttft_s)
    completed = replace(slo, long_tokens=setting.threshold, long_ttft_s=long_ttft_s)
    return completed, budget


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """A way to run the fleet."""

    name: str
    title: str
    tiers: tuple[Tier, ...]
    strategy: StrategySpec
    is_planned: bool = False
    """Whether this is the plan itself, whose figures have to be precise."""


def policies(question: Question) -> list[FleetPolicy]:
    """Return the policies to compare: the papers' baseline, ``split``, and others."""
    seqs = question.max_num_seqs
    mix = question.workload.mix

    def tier(name: str, max_model_len: int, *, worst_case: bool = False) -> Tier:
        hardware = question.hardware(name)
        limits = hardware.engine.limits(
            max_model_len,
            None if worst_case else hardware.max_num_seqs,
            hardware.max_num_batched_tokens,
        )
        return Tier(name, limits, max_model_len)

    def tiers(*, worst_case: bool = False) -> tuple[Tier, ...]:
        ends = (*question.thresholds, question.max_model_len)
        return tuple(
            tier(name, end, worst_case=worst_case)
            for name, end in zip(question.pool_names, ends, strict=True)
        )

    def strategy(name: StrategyName) -> StrategySpec:
        return StrategySpec(name, mix, question.variation_factor)

    oracle = strategy(StrategyName.ORACLE)
    longest, shortest = question.max_model_len, question.thresholds[-1]
    worst = tier("all", longest, worst_case=True)
    split = tiers()
    split_seqs = ", ".join(
        str(count) for count in dict.fromkeys(t.limits.max_num_seqs for t in split)
    )
    found = [
        FleetPolicy(
            "homogeneous-worst-case",
            f"one pool, max_num_seqs {worst.limits.max_num_seqs}, as many as fit with "
            f"{longest:,} tokens each",
            (worst,),
            oracle,
        ),
        FleetPolicy(
            "split",
            f"pools by token budget, max_num_seqs {split_seqs}",
            split,
            strategy(StrategyName.ROUTER),
            is_planned=True,
        ),
        FleetPolicy(
            "homogeneous-paged",
            f"one pool, max_num_seqs {seqs}",
            (tier("all", longest),),
            oracle,
        ),
        FleetPolicy(
            "homogeneous-short-limit",
            f"one pool, max_num_seqs {seqs}, max_model_len {shortest:,}",
            (tier("all", shortest),),
            oracle,
        ),
        FleetPolicy(
            "split-worst-case",
            "the split, max_num_seqs for the worst case",
            tiers(worst_case=True),
            strategy(StrategyName.ROUTER),
        ),
    ]
    for name, title in (
        (StrategyName.ORACLE, "the split, routed by the true budget"),
        (StrategyName.PROMPT_LENGTH, "the split, routed by prompt tokens alone"),
        (StrategyName.BYTES_PER_4, "the split, routed by body bytes / 4"),
    ):
        found.append(FleetPolicy(f"split-{name}", title, split, strategy(name)))
    return found
