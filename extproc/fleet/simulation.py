"""A fleet under traffic: pools of instances behind a routing strategy.

Instances influence each other only through what is routed to them, so each keeps its
own clock and is advanced when somebody looks at it: when a request has to choose
between two of a pool, and at every tick. Within a pool a request goes to the less
loaded of two instances drawn at random, which is Envoy's LEAST_REQUEST policy; after
every tick the router learns from what finished, and knows each pool's pressure.

A prompt that fills a pool's ``max_model_len`` is refused there (vLLM's 400), the
gateway retries it on the next larger pool, and it counts as an overflow; what not even
the last pool holds is rejected. A prompt that fits with an output that does not is
taken: vLLM cuts the answer at the window, whatever limit was declared
(``get_max_tokens`` in ``vllm/entrypoints/serve/utils/api_utils.py``), and it counts as
truncated.

The first share of the requests warms the fleet up and the last winds it down; neither
is measured. Nothing is kept of a request once it is counted.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from extproc.fleet.instance import Instance, Job
from extproc.fleet.results import PoolResult, Result
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.slo import Slo
from extproc.fleet.steptime import StepTime
from extproc.fleet.strategy import Arrival, Strategy, StrategySpec, build_strategy
from extproc.fleet.workload import BLOCK, Arrivals, Lengths, Seconds
from extproc.routing.policy import IDLE, Pool, PoolLoad

#: Requests after which a router is no longer new.
TAUGHT = 2000


class Declared(StrEnum):
    """What clients say of the output they want; traces do not tell."""

    EXACT = "exact"
    """The limit is the output's length: what the papers assume."""
    ABSENT = "absent"
    """No limit."""

    def limit(self, output_tokens: int) -> int | None:
        """The limit that a client sets whose output will be so long."""
        return output_tokens if self is Declared.EXACT else None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool of equal instances.

    Attributes:
        threshold_tokens: budgets up to this go here; the last pool's is not looked at.
        spill_waiting: waiting requests an instance, on average, above which the pool
            is under pressure; None for never.
        slo: what its requests are late by.
    """

    name: str
    instances: int
    limits: SchedulerLimits
    step_time: StepTime
    threshold_tokens: int
    spill_waiting: float | None = None
    slo: Slo = field(default_factory=Slo)


@dataclass(frozen=True, slots=True)
class Run:
    """How much to simulate.

    Attributes:
        requests: arrivals in all.
        warm_up_share, wind_down_share: of them, not measured.
        tick_s: how late, at most, the router learns of a response and of pressure.
        taught: requests that the router has learned from before the first arrival; 0
            for one that starts cold.
    """

    requests: int
    seed: int
    declared: Declared = Declared.EXACT
    warm_up_share: float = 0.2
    wind_down_share: float = 0.05
    tick_s: float = 1.0
    taught: int = TAUGHT


@dataclass(slots=True)
class _Ticket:
    """What is remembered of a request in flight."""

    prompt_tokens: int
    output_tokens: int
    kept: object
    measured: bool


def _ticket(job: Job) -> _Ticket:
    assert isinstance(job.tag, _Ticket)
    return job.tag


class _Pool:
    """A pool's instances at work."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.instances = [
            Instance(spec.limits, spec.step_time) for _ in range(spec.instances)
        ]
        self.result = PoolResult(spec.name, spec.instances)
        self._ticks = 0
        self._in_system = 0
        self._peak_usage = 0.0

    def submit(self, job: Job, first: float, second: float) -> None:
        """Give the job to the less loaded of two instances, drawn by two uniforms."""
        instances = self.instances
        count = len(instances)
        chosen = instances[int(first * count)]
        chosen.advance(job.arrival_s)
        if count > 1:
            # Another one: skip over the first.
            index = int(second * (count - 1))
            other = instances[index + (index >= int(first * count))]
            other.advance(job.arrival_s)
            if len(other) < len(chosen):
                chosen = other
        chosen.add(job)

    def advance(self, now_s: float) -> list[Job]:
        """Bring every instance to this time and take what finished."""
        finished: list[Job] = []
        for instance in self.instances:
            instance.advance(now_s)
            if instance.finished:
                finished += instance.finished
                instance.finished = []
        return finished

    def sample(self) -> PoolLoad:
        """Note how full the pool is; say whether it is under pressure."""
        self._ticks += 1
        self._in_system += sum(map(len, self.instances))
        usage = max(instance.kv_cache_usage for instance in self.instances)
        self._peak_usage = max(self._peak_usage, usage)
        if self.spec.spill_waiting is None:
            return IDLE
        waiting = sum(len(instance.waiting) for instance in self.instances)
        return PoolLoad(
            under_pressure=waiting / len(self.instances) > self.spec.spill_waiting
        )

    def finish(self, busy_until_s: float) -> PoolResult:
        """Averages over instances and time."""
        result = self.result
        time_s = len(self.instances) * busy_until_s
        if time_s > 0:
            usable = self.spec.limits.usable_blocks
            result.busy_share = sum(i.busy_s for i in self.instances) / time_s
            result.mean_running = sum(i.running_s for i in self.instances) / time_s
            held = sum(i.blocks_s for i in self.instances)
            result.mean_kv_cache_usage = held / time_s / usable
            computed = sum(i.computed_tokens for i in self.instances)
            result.tokens_per_s = computed / time_s * len(self.instances)
        result.peak_kv_cache_usage = self._peak_usage
        result.mean_in_system = self._in_system / self._ticks if self._ticks else 0.0
        return result


class Simulation:
    """One run, request by request. Use :func:`simulate`."""

    def __init__(self, pools: list[PoolSpec], strategy: Strategy, run: Run) -> None:
        self.run = run
        self.pools = [_Pool(spec) for spec in pools]
        self.strategy = strategy
        self.result = Result([pool.result for pool in self.pools], run.seed)
        self.loads: dict[str, PoolLoad] = {}
        self._next_tick_s = run.tick_s
        self._first_measured = int(run.requests * run.warm_up_share)
        self._last_measured = int(run.requests * (1 - run.wind_down_share))
        self._short = self._long = 0

    def offer(self, at_s: float, arrival: Arrival, first: float, second: float) -> None:
        """One request arrives; ``first`` and ``second`` are uniform draws."""
        while self._next_tick_s <= at_s:
            self._tick(self._next_tick_s)
            self._next_tick_s += self.run.tick_s
        result = self.result
        measured = self._first_measured <= result.arrived < self._last_measured
        result.arrived += 1
        result.measured += measured
        result.duration_s = at_s
        position, kept = self.strategy.choose(arrival, self.loads)
        if measured and not self.loads:
            self._judge(position, arrival)
        taker = self._taker(position, arrival, measured)
        if taker is None:
            result.rejected += measured
            result.completed += 1
            return
        window = taker.spec.limits.max_model_len - arrival.prompt_tokens
        output_tokens = min(arrival.output_tokens, window)
        if measured and output_tokens < arrival.output_tokens:
            taker.result.truncated += 1
        ticket = _Ticket(arrival.prompt_tokens, output_tokens, kept, measured)
        job = Job(at_s, arrival.prompt_tokens, output_tokens, ticket)
        taker.submit(job, first, second)

    def close(self) -> Result:
        """Drain everything and close the books."""
        busy_until_s = self.result.duration_s
        results = [pool.finish(busy_until_s) for pool in self.pools]
        self._account(math.inf)
        result = self.result
        for pool in results:
            result.ttft.merge(pool.ttft)
            result.tpot.merge(pool.tpot)
            result.wait.merge(pool.wait)
        if result.measured:
            result.misrouted_short = self._short / result.measured
            result.misrouted_long = self._long / result.measured
        return result

    def _taker(self, position: int, arrival: Arrival, measured: bool) -> _Pool | None:
        """The first pool from this one on that vLLM's front end accepts it in."""
        for pool in self.pools[position:]:
            if arrival.prompt_tokens < pool.spec.limits.max_model_len:
                return pool
            pool.result.overflows += measured
        return None

    def _judge(self, position: int, arrival: Arrival) -> None:
        """Compare with the smallest pool whose threshold holds the true budget."""
        needed = arrival.prompt_tokens + arrival.output_tokens
        last = len(self.pools) - 1
        right = next(
            (
                index
                for index, pool in enumerate(self.pools)
                if needed <= pool.spec.threshold_tokens
            ),
            last,
        )
        self._short += position < right
        self._long += position > right

    def _tick(self, now_s: float) -> None:
        self._account(now_s)
        for pool in self.pools:
            load = pool.sample()
            if pool.spec.spill_waiting is not None:
                self.loads[pool.spec.name] = load

    def _account(self, until_s: float) -> None:
        """Count and learn from what finished, in order of finishing."""
        finished: list[Job] = []
        for pool in self.pools:
            jobs = pool.advance(until_s)
            finished += jobs
            measured = [job for job in jobs if _ticket(job).measured]
            pool.result.count(measured, pool.spec.slo)
        finished.sort(key=lambda job: job.finish_s)
        self.result.completed += len(finished)
        for job in finished:
            ticket = _ticket(job)
            self.strategy.learn(ticket.kept, ticket.prompt_tokens, ticket.output_tokens)


def simulate(
    pools: list[PoolSpec],
    lengths: Lengths,
    arrivals: Arrivals,
    strategy: StrategySpec,
    run: Run,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Simulate ``run.requests`` arrivals (fewer, if the arrivals end before).

    Args:
        pools: in increasing order of ``max_model_len``.
        progress: called with the number of arrivals so far, now and then.
    """
    # Streams of their own, so that one strategy's draws do not shift the traffic.
    seeds = np.random.SeedSequence(run.seed).spawn(5)
    traffic, instants, balancing, text, past = map(np.random.default_rng, seeds)
    routing_pools = [
        Pool(spec.name, spec.limits.max_model_len, spec.threshold_tokens)
        for spec in pools
    ]
    router = build_strategy(strategy, routing_pools, text)
    _teach(router, lengths, past, run)
    simulation = Simulation(pools, router, run)
    left = run.requests
    for block in _blocks(arrivals(instants)):
        times = block[:left]
        count = len(times)
        prompts, outputs = lengths.draw(traffic, count)
        draws = balancing.random((count, 2))
        for at_s, prompt, output, (first, second) in zip(
            times.tolist(),
            prompts.tolist(),
            outputs.tolist(),
            draws.tolist(),
            strict=True,
        ):
            arrival = Arrival(prompt, output, run.declared.limit(output))
            simulation.offer(at_s, arrival, first, second)
        left -= count
        if progress is not None:
            progress(run.requests - left)
        if left == 0:
            break
    return simulation.close()


def _teach(
    strategy: Strategy, lengths: Lengths, rng: np.random.Generator, run: Run
) -> None:
    prompts, outputs = lengths.draw(rng, run.taught)
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        arrival = Arrival(prompt, output, run.declared.limit(output))
        _, kept = strategy.choose(arrival, {})
        strategy.learn(kept, prompt, output)


def _blocks(drawn: Iterator[Seconds]) -> Iterator[Seconds]:
    for instants in drawn:
        for start in range(0, len(instants), BLOCK):
            yield instants[start : start + BLOCK]
