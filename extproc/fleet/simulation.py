"""A fleet under traffic: pools of instances behind a routing strategy.

Instances affect each other only through routing. So each instance has its own clock,
which is advanced when the balancer compares the instance with another one, and at every
tick. Within a pool, the load balancer chooses the instance
(:mod:`extproc.fleet.balancing`); after every tick the router learns from finished
requests and updates each pool's pressure.

A pool refuses a prompt that fills its ``max_model_len`` (vLLM's 400). The gateway
retries the request on the next larger pool, and the request counts as an overflow. A
prompt that exceeds even the last pool is rejected. If the prompt fits but its output
does not, the request is accepted. vLLM truncates the answer at the window for any
declared limit (``get_max_tokens`` in ``vllm/entrypoints/serve/utils/api_utils.py``),
and the request counts as truncated.

Requests are counted in the batch in which they finish, so a run ends without waiting
for requests in flight; :mod:`extproc.fleet.steady` decides which batches are measured
and when to stop. No request is stored after it has been counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from extproc.fleet.balancing import Balancer, Balancing
from extproc.fleet.instance import Instance
from extproc.fleet.job import Job
from extproc.fleet.prefix_cache import Prefix
from extproc.fleet.results import PoolResult, Result
from extproc.fleet.scheduler import SchedulerLimits
from extproc.fleet.slo import Slo
from extproc.fleet.steady import Measurement, RunSettings
from extproc.fleet.steptime import StepTime
from extproc.fleet.strategy import Arrival, Strategy, StrategySpec, build_strategy
from extproc.fleet.workload import Lengths, RequestStream
from extproc.routing.misroute import right_position
from extproc.routing.policy import IDLE, Policy, Pool, PoolLoad


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool of identical instances."""

    name: str
    instances: int
    limits: SchedulerLimits
    step_time: StepTime
    threshold_tokens: int
    """Largest budget routed to this pool; ignored for the last pool."""
    spill_waiting: float | None = None
    """Mean number of waiting requests per instance above which the pool is under
    pressure; None to disable pressure."""
    slo: Slo = field(default_factory=Slo)
    """Limits above which a request counts as late."""
    balancing: Balancing = Balancing.LEAST_REQUEST
    """Rule that chooses an instance of the pool."""

    @property
    def routing_pool(self) -> Pool:
        """Return the pool as the router sees it."""
        return Pool(self.name, self.limits.max_model_len, self.threshold_tokens)


@dataclass(slots=True)
class _Ticket:
    """The state of a request in flight."""

    prompt_tokens: int
    output_tokens: int
    kept: object


def _ticket(job: Job) -> _Ticket:
    assert isinstance(job.tag, _Ticket)
    return job.tag


@dataclass(slots=True)
class _Sums:
    """Sums over a pool's instances or requests since the start of the run."""

    in_system_s: float
    busy_s: float
    running_s: float
    blocks_s: float
    computed_tokens: int


class _Pool:
    """The instances of a pool in operation."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.instances = [
            Instance(spec.limits, spec.step_time) for _ in range(spec.instances)
        ]
        self._balancer = Balancer(spec.balancing, self.instances)
        self.result = self._fresh()
        self.in_system = 0
        # Sum of the requests' finish times minus the sum of their arrival times.
        self._ends_s = 0.0
        self._since = _Sums(0.0, 0.0, 0.0, 0.0, 0)
        self._since_s = 0.0

    def _fresh(self) -> PoolResult:
        usable = self.spec.limits.usable_blocks
        return PoolResult(self.spec.name, self.spec.instances, usable)

    def submit(self, job: Job, first: float, second: float) -> None:
        """Submit the job to an instance, chosen by two uniform draws."""
        self._balancer.choose(job, self.in_system, first, second).add(job)
        self.in_system += 1
        self.result.arrivals += 1
        self._ends_s -= job.arrival_s

    def advance(self, now_s: float) -> list[Job]:
        """Advance every instance to a time; count and return the finished requests."""
        finished: list[Job] = []
        for instance in self.instances:
            instance.advance(now_s)
            done = instance.finished
            if not done:
                continue
            # The last step that started may end after ``now_s``.
            count = len(done)
            while count and done[count - 1].finish_s > now_s:
                count -= 1
            finished += done[:count]
            instance.finished = done[count:]
        self.in_system -= len(finished)
        self._ends_s += sum(job.finish_s for job in finished)
        self.result.count(finished, self.spec.slo)
        return finished

    def sample(self) -> PoolLoad:
        """Record how full the pool is, and return whether it is under pressure."""
        usage = max(instance.kv_cache_usage for instance in self.instances)
        self.result.peak_kv_cache_usage = max(self.result.peak_kv_cache_usage, usage)
        if self.spec.spill_waiting is None:
            return IDLE
        waiting = sum(len(instance.waiting) for instance in self.instances)
        return PoolLoad(
            under_pressure=waiting / len(self.instances) > self.spec.spill_waiting
        )

    def cut(self, now_s: float) -> PoolResult:
        """End a batch, and return the pool's results since the previous batch."""
        sums = _Sums(
            self._ends_s + self.in_system * now_s,
            sum(instance.busy_s for instance in self.instances),
            sum(instance.running_s for instance in self.instances),
            sum(instance.blocks_s for instance in self.instances),
            sum(instance.computed_tokens for instance in self.instances),
        )
        since, result = self._since, self.result
        result.duration_s = now_s - self._since_s
        result.in_system_s = sums.in_system_s - since.in_system_s
        result.busy_s = sums.busy_s - since.busy_s
        result.running_s = sums.running_s - since.running_s
        result.blocks_s = sums.blocks_s - since.blocks_s
        result.computed_tokens = sums.computed_tokens - since.computed_tokens
        self._since, self._since_s = sums, now_s
        self.result = self._fresh()
        return result


class Simulation:
    """One run, request by request, as used by :func:`simulate`."""

    def __init__(
        self, pools: list[PoolSpec], strategy: Strategy, run: RunSettings
    ) -> None:
        self.run = run
        self.pools = [_Pool(spec) for spec in pools]
        self.strategy = strategy
        self.arrived = self.completed = 0
        self.measurement = Measurement(run)
        self._loads: dict[str, PoolLoad] = {}
        self._next_tick_s = run.tick_s
        self._batch = Result([])
        self._policy = Policy([spec.routing_pool for spec in pools])

    def offer(
        self,
        at_s: float,
        arrival: Arrival,
        draws: tuple[float, float],
        prefix: Prefix | None = None,
    ) -> Result | None:
        """Process the arrival of a request, given its uniform random draws.

        Returns:
            The result of the earlier requests once the run has settled, and None
                before.
        """
        while self._next_tick_s <= at_s:
            self._tick(self._next_tick_s)
            self._next_tick_s += self.run.tick_s
        settled = None
        while (end_s := self.measurement.end_s(self._batch, at_s)) is not None:
            self._account(end_s)
            self._cut(end_s)
            if self.run.fill:
                settled = self.measurement.settled()
        self.arrived += 1
        self._batch.measured += 1
        position, kept = self.strategy.choose(arrival, self._loads)
        if not self._loads:
            self._judge(position, arrival)
        taker = self._taker(position, arrival)
        if taker is None:
            self._batch.rejected += 1
            self.completed += 1
            return settled
        window = taker.spec.limits.max_model_len - arrival.prompt_tokens
        output_tokens = min(arrival.output_tokens, window)
        taker.result.truncated += output_tokens < arrival.output_tokens
        ticket = _Ticket(arrival.prompt_tokens, output_tokens, kept)
        job = Job(at_s, arrival.prompt_tokens, output_tokens, ticket, prefix)
        # The scheduler can foresee the end of an answer only if the window or a
        # declared limit ends it.
        job.is_open_ended = output_tokens < window and arrival.max_tokens is None
        taker.submit(job, *draws)
        return settled

    def close(self, at_s: float) -> Result:
        """End the run at the last arrival or, if ``fill`` is 0, at the last answer."""
        if self.run.fill:
            self._account(at_s)
            self._cut(at_s)
        else:
            self._account(math.inf)
            ends = [i.now_s for pool in self.pools for i in pool.instances]
            self._cut(max(at_s, *ends))
        return self.measurement.last()

    def finish(self, result: Result) -> Result:
        """Add the totals of the whole run to the result."""
        result.seed = self.run.seed
        result.arrived, result.completed = self.arrived, self.completed
        result.in_flight = sum(pool.in_system for pool in self.pools)
        return result

    def _cut(self, at_s: float) -> None:
        """End the batch and start the next one."""
        self._batch.duration_s = at_s - self._batch.start_s
        self._batch.pools = [pool.cut(at_s) for pool in self.pools]
        self.measurement.add(self._batch)
        self._batch = Result([], start_s=at_s)

    def _taker(self, position: int, arrival: Arrival) -> _Pool | None:
        """Return the first pool, from the given one on, that accepts the request."""
        for pool in self.pools[position:]:
            if arrival.prompt_tokens < pool.spec.limits.max_model_len:
                return pool
            pool.result.overflows += 1
        return None

    def _judge(self, position: int, arrival: Arrival) -> None:
        needed = arrival.prompt_tokens + arrival.output_tokens
        right = right_position(self._policy, needed)
        self._batch.sent_short += position < right
        self._batch.sent_long += position > right

    def _tick(self, now_s: float) -> None:
        self._account(now_s)
        for pool in self.pools:
            load = pool.sample()
            if pool.spec.spill_waiting is not None:
                self._loads[pool.spec.name] = load

    def _account(self, until_s: float) -> None:
        """Count finished requests and learn from them, in the order they finished."""
        finished = [job for pool in self.pools for job in pool.advance(until_s)]
        finished.sort(key=lambda job: job.finish_s)
        self.completed += len(finished)
        for job in finished:
            ticket = _ticket(job)
            self.strategy.learn(ticket.kept, ticket.prompt_tokens, ticket.output_tokens)


def simulate(
    pools: list[PoolSpec],
    stream: RequestStream,
    strategy: StrategySpec,
    run: RunSettings,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Simulate until the fleet has settled and ``run.requests`` requests are measured.

    Args:
        pools: the pools in increasing order of ``max_model_len``.
        progress: function called regularly with the number of arrivals so far.
    """
    return simulate_with_strategy(pools, stream, strategy, run, progress)[0]


def simulate_with_strategy(
    pools: list[PoolSpec],
    stream: RequestStream,
    strategy: StrategySpec,
    run: RunSettings,
    progress: Callable[[int], None] | None = None,
) -> tuple[Result, Strategy]:
    """Do as :func:`simulate`; also return the strategy with all that it has learned."""
    # Separate random streams, so that a strategy's draws do not change the traffic.
    seeds = np.random.SeedSequence(run.seed).spawn(5)
    traffic, instants, balancing, text, past = map(np.random.default_rng, seeds)
    router = build_strategy(strategy, [spec.routing_pool for spec in pools], text)
    _teach(router, stream.lengths, past, run)
    simulation = Simulation(pools, router, run)
    left = run.limit
    at_s = 0.0
    for times, prompts, outputs, prefixes in stream(instants, traffic):
        draws = balancing.random((len(times), 2))
        for at_s, prompt, output, pair, prefix in zip(
            times[:left].tolist(),
            prompts[:left].tolist(),
            outputs[:left].tolist(),
            draws[:left].tolist(),
            [None] * len(times[:left]) if prefixes is None else prefixes[:left],
            strict=True,
        ):
            arrival = Arrival(prompt, output, run.declared.limit(output))
            settled = simulation.offer(at_s, arrival, pair, prefix)
            if settled is not None:
                return simulation.finish(settled), router
        left -= len(times)
        if progress is not None:
            progress(simulation.arrived)
        if left <= 0:
            break
    return simulation.finish(simulation.close(at_s)), router


def _teach(
    strategy: Strategy, lengths: Lengths, rng: np.random.Generator, run: RunSettings
) -> None:
    prompts, outputs = lengths.draw(rng, run.taught)
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        arrival = Arrival(prompt, output, run.declared.limit(output))
        _, kept = strategy.choose(arrival, {})
        strategy.learn(kept, prompt, output)
