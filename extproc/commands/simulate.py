"""Simulate a fleet under traffic: latencies, queues, preemptions, misroutes.

Without --pool, the fleet is the papers' pair, short (8,192) and long (65,536), with
--instances for each. All figures describe the steady state: measurement starts once the
fleet has filled, and continues until the results of both halves agree. 95 % intervals
come from batch means, or, with --replications, from parallel runs with other seeds. A
P99 of fewer than 1,000 requests is omitted. A pool that gets under 5 % of the
requests is then simulated alone, with its own requests, until its P99s are known to
2.5 % or 12.5 % of --requests are measured, except with --replications, with
--spill-waiting or if a file is replayed.

  extproc simulate --workload azure-conv --rate 100 --instances 23,2
  extproc simulate --workload my-log.jsonl --rate 40 \\
      --pool short:8192:12 --pool long:65536:4 --router bytes/4 --json
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from extproc.commands.hardware_options import (
    DEFAULT_THRESHOLD,
    add_hardware_arguments,
    complete_limits,
    read_engine,
    warn_beyond_profile,
)
from extproc.commands.progress import Progress
from extproc.commands.promise_options import add_promise_arguments, read_slo
from extproc.commands.run_options import add_run_arguments
from extproc.commands.simulate_document import SimulatedPool, document
from extproc.commands.simulate_text import print_fleet
from extproc.commands.text import plain_json
from extproc.commands.traffic_options import (
    OptionError,
    Traffic,
    add_traffic_arguments,
    read_traffic,
)
from extproc.fleet.alone import Alone
from extproc.fleet.assignment import Inquiry, Tier, assign
from extproc.fleet.balancing import Balancing
from extproc.fleet.declared import Declared
from extproc.fleet.question import Setting, complete_slo
from extproc.fleet.replay import Replay
from extproc.fleet.results import Result
from extproc.fleet.simulation import PoolSpec, simulate_with_strategy
from extproc.fleet.sizing import (
    Engine,
    SizingTask,
    in_rounds,
)
from extproc.fleet.slo import Slo, token_budget
from extproc.fleet.steady import TAUGHT, RunSettings
from extproc.fleet.strategy import Strategy, StrategyName, StrategySpec

#: Range of the number of requests that the run's strategy assigns after the run, to
#: estimate each pool's share and lengths; a twentieth of ``--requests`` within it.
_ASSIGNED = (1000, 10_000)
#: A pool that gets less than this share of the requests is measured alone ...
_SHARE_TOGETHER = 0.05
#: ... with at least the same share of ``--requests``, up to this number ...
_MOST_ALONE = 100_000
#: ... and at most this multiple of it.
_MOST_TIMES_ALONE = 2.5
#: Minimum number of rounds to measure when a file is replayed.
_MIN_ROUNDS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_traffic_arguments(parser)
    add_hardware_arguments(parser)
    pools = parser.add_argument_group("pools")
    pools.add_argument(
        "--pool",
        action="append",
        metavar="NAME:MAX_MODEL_LEN:INSTANCES[:MAX_NUM_SEQS]",
        help="one pool; repeat in increasing order of max_model_len",
    )
    pools.add_argument(
        "--instances",
        default="20,2",
        metavar="N,M",
        help="instances of the short and the long pool (default: %(default)s)",
    )
    pools.add_argument(
        "--max-num-seqs",
        type=int,
        help="max_num_seqs of pools that do not set one (default: the profile's, else "
        "vLLM's for the GPU)",
    )
    pools.add_argument(
        "--router",
        choices=list(StrategyName),
        default=StrategyName.ROUTER,
        metavar="NAME",
        help=f"one of {', '.join(StrategyName)} (default: router, the shipped one)",
    )
    pools.add_argument(
        "--variation",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="factor on the variation of bytes a token within a kind of text "
        "(default: %(default)s)",
    )
    pools.add_argument(
        "--spill-waiting",
        type=float,
        metavar="N",
        help="waiting requests an instance above which a pool spills (default: never)",
    )
    pools.add_argument(
        "--balancing",
        choices=[str(each) for each in Balancing],
        default=str(Balancing.LEAST_REQUEST),
        help="load balancer of each pool: Envoy's least-request, random, or prefix: "
        "the instance that last served the longest prefix of the prompt, unless it has "
        "over 1.25 times its share of the requests (default: %(default)s)",
    )
    pools.add_argument(
        "--cold-start",
        action="store_true",
        help="start the router with nothing learned",
    )
    add_promise_arguments(parser)
    parser.add_argument(
        "--requests",
        type=int,
        default=20_000,
        help="requests to measure in each replication after the fleet has filled; "
        "more if its halves do not agree (default: %(default)s)",
    )
    parser.add_argument(
        "--replications",
        type=int,
        default=1,
        help="runs, with consecutive seeds from --seed (default: %(default)s)",
    )
    parser.add_argument("--usd-per-gpu-hour", type=float, help=argparse.SUPPRESS)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate and print."""
    try:
        task = _read(args)
    except OptionError as error:
        print(f"extproc simulate: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    results, pools = _replicate(task, args)
    found = document(args, task.traffic, results, task.measured(pools, results))
    found["wall_time_s"] = round(time.monotonic() - started, 1)
    if args.json:
        print(plain_json(found))
    else:
        print_fleet(found)
    return 0


@dataclass(frozen=True, slots=True)
class _Task:
    traffic: Traffic
    pools: list[PoolSpec]
    strategy: StrategySpec
    run: RunSettings

    def simulate(
        self, progress: Callable[[int], None] | None = None
    ) -> tuple[Result, list[SizingTask]]:
        """Return the result, and each pool with the requests that are sent to it."""
        result, strategy = simulate_with_strategy(
            self.pools, self.traffic.stream, self.strategy, self.run, progress
        )
        return result, self._assigned(strategy)

    def _assigned(self, strategy: Strategy) -> list[SizingTask]:
        tiers = [Tier(p.name, p.limits, p.threshold_tokens) for p in self.pools]
        fewest, most = _ASSIGNED
        count = min(most, max(fewest, self.run.requests // 20))
        inquiry = Inquiry(
            tiers,
            strategy,
            self.run.seed,
            self.run.declared,
            requests=count,
            of_a_kind=2 * count,
        )
        assigned = assign(self.traffic.stream.lengths, inquiry)
        return [
            SizingTask(
                tier,
                pool.step_time,
                traffic,
                self.traffic.arrivals,
                self.traffic.rate * traffic.share,
                pool.slo,
                self.run.seed,
                balancing=pool.balancing,
            )
            for tier, pool, traffic in zip(
                tiers, self.pools, assigned.pools, strict=True
            )
        ]

    def measured(
        self, tasks: Sequence[SizingTask], results: Sequence[Result]
    ) -> list[SimulatedPool]:
        """Measure each pool alone that gets too few of the fleet's requests.

        Several runs have intervals of their own, and pools that spill into each other
        are not independent.
        """
        pools = list(zip(self.pools, tasks, strict=True))
        spills = any(pool.spill_waiting is not None for pool in self.pools)
        if len(results) > 1 or spills or len(tasks) == 1:
            return [SimulatedPool(spec, task, None) for spec, task in pools]
        fewest = int(min(_SHARE_TOGETHER * self.run.requests, _MOST_ALONE))
        alone = Alone(fewest, int(_MOST_TIMES_ALONE * fewest), self.run.seed + 1)
        return [
            SimulatedPool(
                spec,
                task,
                alone.measure(task, results[0], index, spec.instances)
                if alone.is_for(task, results[0], index)
                else None,
            )
            for index, (spec, task) in enumerate(pools)
        ]


def _simulate(task: _Task) -> tuple[Result, list[SizingTask]]:
    return task.simulate()


def _read(args: argparse.Namespace) -> _Task:
    args = complete_limits(args)
    for option in ("requests", "replications", "processes", "max_num_seqs"):
        value = getattr(args, option)
        if value < 1:
            raise OptionError(f"--{option.replace('_', '-')}: {value}; expected >= 1")
    if args.variation < 0:
        raise OptionError(f"--variation: {args.variation}; expected >= 0")
    traffic = read_traffic(args)
    slo, engine = read_slo(args), read_engine(args)
    pools = _read_pools(args, engine, slo)
    window = pools[-1].limits.max_model_len
    thresholds = [pool.threshold_tokens for pool in pools[:-1]]
    setting = Setting(
        traffic.workload,
        engine,
        thresholds[-1] if thresholds else min(DEFAULT_THRESHOLD, window // 2),
        window,
        pools[-1].limits.max_num_batched_tokens,
        args.seed,
    )
    promised, _ = complete_slo(slo, setting, args.slo_long_ttft)
    pools = [replace(pool, slo=promised) for pool in pools]
    warn_beyond_profile(args, [pool.limits for pool in pools], priced=False)
    run = RunSettings(
        args.requests,
        args.seed,
        Declared(args.declared),
        taught=0 if args.cold_start else TAUGHT,
    )
    if isinstance(traffic.arrivals, Replay):
        rounds = -(-args.requests // max(1, traffic.arrivals.requests))
        run = in_rounds(run, traffic.arrivals, max(_MIN_ROUNDS, rounds))
    return _Task(
        traffic,
        pools,
        StrategySpec(StrategyName(args.router), traffic.workload.mix, args.variation),
        run,
    )


def _read_pools(args: argparse.Namespace, engine: Engine, slo: Slo) -> list[PoolSpec]:
    described = args.pool or _default_pools(args)
    budget = args.max_num_batched_tokens or token_budget(engine.step_time, slo)
    pools: list[PoolSpec] = []
    for text in described:
        name, *numbers = text.split(":")
        if len(numbers) not in (2, 3) or not all(n.isdecimal() for n in numbers):
            raise OptionError(
                f"--pool: {text}; expected NAME:MAX_MODEL_LEN:INSTANCES[:MAX_NUM_SEQS]"
            )
        max_model_len, instances, *seqs = map(int, numbers)
        if instances < 1:
            raise OptionError(f"--pool: {text}; expected at least one instance")
        if pools and max_model_len <= pools[-1].limits.max_model_len:
            raise OptionError(f"--pool: {text}; expected increasing MAX_MODEL_LEN")
        try:
            limits = engine.limits(
                max_model_len, seqs[0] if seqs else args.max_num_seqs, budget
            )
        except ValueError as error:
            raise OptionError(f"--pool: {text}: {error}") from error
        pools.append(
            PoolSpec(
                name,
                instances,
                limits,
                engine.step_time,
                max_model_len,
                args.spill_waiting,
                slo,
                Balancing(args.balancing),
            )
        )
    return pools


def _default_pools(args: argparse.Namespace) -> list[str]:
    counts = args.instances.split(",")
    if len(counts) != 2 or not all(count.isdecimal() for count in counts):
        raise OptionError(f"--instances: {args.instances}; expected N,M")
    threshold = min(DEFAULT_THRESHOLD, args.max_model_len // 2)
    return [
        f"short:{threshold}:{counts[0]}",
        f"long:{args.max_model_len}:{counts[1]}",
    ]


def _replicate(
    task: _Task, args: argparse.Namespace
) -> tuple[list[Result], list[SizingTask]]:
    """Return the result of each run, and the pools with the requests of the first."""
    if args.replications == 1:
        progress = Progress("simulating", task.run.requests)
        result, pools = task.simulate(progress.show)
        return [result], pools
    tasks = [
        replace(task, run=replace(task.run, seed=args.seed + index))
        for index in range(args.replications)
    ]
    progress = Progress("replications", len(tasks))
    found = []
    processes = min(args.processes, len(tasks))
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        for each in workers.imap(_simulate, tasks):
            found.append(each)
            progress.show(len(found))
    return [result for result, _ in found], found[0][1]
