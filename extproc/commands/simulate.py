"""One fleet under traffic, in detail: latencies, queues, preemptions, misroutes.

Without --pool it is the papers' pair, short (8,192) and long (65,536), with --instances
for each. Replications run in parallel and give 95 % confidence intervals.

  extproc simulate --workload azure-conv --rate 100 --instances 23,2
  extproc simulate --workload my-log.jsonl --arrivals recorded --rate 40 \\
      --pool short:8192:12 --pool long:65536:4 --router bytes/4 --json
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from extproc.commands.fleet_options import (
    DEFAULT_THRESHOLD,
    OptionError,
    Progress,
    add_hardware_arguments,
    add_output_arguments,
    add_promise_arguments,
    add_traffic_arguments,
    complete_limits,
    plain_json,
    read_arrivals,
    read_engine,
    read_slo,
    read_workload,
    warn_beyond_profile,
)
from extproc.fleet.results import PoolResult, Result
from extproc.fleet.simulation import TAUGHT, Declared, PoolSpec, Run, simulate
from extproc.fleet.sizing import Engine
from extproc.fleet.slo import Slo, token_budget
from extproc.fleet.strategy import StrategyName, StrategySpec
from extproc.fleet.workload import Arrivals, Lengths

# Student's t at 97.5 % for 1 to 9 degrees of freedom (any table); 1.96 above.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_traffic_arguments(parser)
    add_hardware_arguments(parser)
    pools = parser.add_argument_group("pools")
    pools.add_argument(
        "--pool",
        action="append",
        metavar="NAME:MAX_MODEL_LEN:INSTANCES[:MAX_NUM_SEQS]",
        help="repeat it in increasing order of max_model_len",
    )
    pools.add_argument(
        "--instances", default="20,2", metavar="N,M", help="of short and long"
    )
    pools.add_argument(
        "--max-num-seqs",
        type=int,
        help="of pools that give none; default: vLLM's on the GPU, or the profile's",
    )
    pools.add_argument(
        "--router",
        choices=list(StrategyName),
        default=StrategyName.ROUTER,
        metavar="NAME",
        help=f"one of {', '.join(StrategyName)}; default router, the shipped one",
    )
    pools.add_argument(
        "--variation",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="scales how much bytes a token vary between requests of a kind",
    )
    pools.add_argument(
        "--spill-waiting",
        type=float,
        metavar="N",
        help="waiting requests an instance above which a pool spills; default never",
    )
    pools.add_argument(
        "--cold-start",
        action="store_true",
        help="the router has learned nothing before the first request",
    )
    add_promise_arguments(parser)
    parser.add_argument(
        "--requests", type=int, default=20_000, help="of a replication; default 20000"
    )
    parser.add_argument(
        "--replications", type=int, default=1, help="seeds from --seed on; default 1"
    )
    parser.add_argument("--usd-per-gpu-hour", type=float, help=argparse.SUPPRESS)
    parser.add_argument(
        "--processes", type=int, default=min(4, os.cpu_count() or 1), help="at most"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate and print."""
    try:
        task = _read(args)
    except OptionError as error:
        print(f"extproc simulate: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    results = _replicate(task, args)
    document = _document(args, task, results)
    document["wall_time_s"] = round(time.monotonic() - started, 1)
    if args.json:
        print(plain_json(document))
    else:
        _print(document)
    return 0


@dataclass(frozen=True, slots=True)
class _Task:
    pools: list[PoolSpec]
    lengths: Lengths
    arrivals: Arrivals
    strategy: StrategySpec
    run: Run

    def simulate(self, progress: Callable[[int], None] | None = None) -> Result:
        return simulate(
            self.pools, self.lengths, self.arrivals, self.strategy, self.run, progress
        )


def _simulate(task: _Task) -> Result:
    return task.simulate()


def _read(args: argparse.Namespace) -> _Task:
    args = complete_limits(args)
    for option in ("requests", "replications", "processes", "max_num_seqs"):
        value = getattr(args, option)
        if value < 1:
            raise OptionError(f"--{option.replace('_', '-')}: {value}, expected >= 1")
    if args.variation < 0:
        raise OptionError(f"--variation: {args.variation}, expected >= 0")
    workload = read_workload(args.workload)
    slo = read_slo(args)
    pools = _read_pools(args, read_engine(args), slo)
    warn_beyond_profile(args, [pool.limits for pool in pools], priced=False)
    return _Task(
        pools,
        workload.lengths,
        read_arrivals(args, workload),
        StrategySpec(StrategyName(args.router), workload.mix, args.variation),
        Run(
            args.requests,
            args.seed,
            Declared(args.declared),
            taught=0 if args.cold_start else TAUGHT,
        ),
    )


def _read_pools(args: argparse.Namespace, engine: Engine, slo: Slo) -> list[PoolSpec]:
    described = args.pool or _default_pools(args)
    budget = args.max_num_batched_tokens or token_budget(engine.step_time, slo)
    pools: list[PoolSpec] = []
    for text in described:
        name, *numbers = text.split(":")
        if len(numbers) not in (2, 3) or not all(n.isdecimal() for n in numbers):
            raise OptionError(
                f"--pool: {text}, expected NAME:MAX_MODEL_LEN:INSTANCES[:MAX_NUM_SEQS]"
            )
        max_model_len, instances, *seqs = map(int, numbers)
        if instances < 1:
            raise OptionError(f"--pool: {text}, expected at least one instance")
        if pools and max_model_len <= pools[-1].limits.max_model_len:
            raise OptionError(f"--pool: {text}, expected increasing MAX_MODEL_LEN")
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
            )
        )
    return pools


def _default_pools(args: argparse.Namespace) -> list[str]:
    counts = args.instances.split(",")
    if len(counts) != 2 or not all(count.isdecimal() for count in counts):
        raise OptionError(f"--instances: {args.instances}, expected N,M")
    threshold = min(DEFAULT_THRESHOLD, args.max_model_len // 2)
    return [
        f"short:{threshold}:{counts[0]}",
        f"long:{args.max_model_len}:{counts[1]}",
    ]


def _replicate(task: _Task, args: argparse.Namespace) -> list[Result]:
    if args.replications == 1:
        progress = Progress("simulating", args.requests)
        return [task.simulate(progress.show)]
    tasks = [
        replace(task, run=replace(task.run, seed=args.seed + index))
        for index in range(args.replications)
    ]
    progress = Progress("replications", len(tasks))
    results = []
    processes = min(args.processes, len(tasks))
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        for result in workers.imap(_simulate, tasks):
            results.append(result)
            progress.show(len(results))
    return results


def _document(
    args: argparse.Namespace, task: _Task, results: list[Result]
) -> dict[str, Any]:
    def measure(of: Callable[[Result], float]) -> dict[str, float | None]:
        return _interval([of(result) for result in results])

    return {
        "workload": args.workload,
        "rate": args.rate,
        "router": str(args.router),
        "requests": args.requests,
        "replications": len(results),
        "seeds": [result.seed for result in results],
        "p50_ttft_s": measure(lambda r: r.ttft.quantile(0.5)),
        "p99_ttft_s": measure(lambda r: r.ttft.quantile(0.99)),
        "p99_tpot_s": measure(lambda r: r.tpot.quantile(0.99)),
        "p99_wait_s": measure(lambda r: r.wait.quantile(0.99)),
        "late_share": measure(lambda r: r.late_share),
        "rejected_share": measure(lambda r: r.rejected / max(1, r.measured)),
        "overflow_share": measure(lambda r: r.overflows / max(1, r.measured)),
        "misrouted_short": measure(lambda r: r.misrouted_short),
        "misrouted_long": measure(lambda r: r.misrouted_long),
        "pools": [
            _pool(spec, [result.pools[index] for result in results])
            for index, spec in enumerate(task.pools)
        ],
    }


def _pool(spec: PoolSpec, results: list[PoolResult]) -> dict[str, Any]:
    def measure(of: Callable[[PoolResult], float]) -> dict[str, float | None]:
        return _interval([of(result) for result in results])

    return {
        "name": spec.name,
        "instances": spec.instances,
        "max_model_len": spec.limits.max_model_len,
        "max_num_seqs": spec.limits.max_num_seqs,
        "max_num_batched_tokens": spec.limits.max_num_batched_tokens,
        "requests": sum(result.requests for result in results),
        "p50_ttft_s": measure(lambda r: r.ttft.quantile(0.5)),
        "p99_ttft_s": measure(lambda r: r.ttft.quantile(0.99)),
        "p50_tpot_s": measure(lambda r: r.tpot.quantile(0.5)),
        "p99_tpot_s": measure(lambda r: r.tpot.quantile(0.99)),
        "p99_wait_s": measure(lambda r: r.wait.quantile(0.99)),
        "p99_e2e_s": measure(lambda r: r.e2e.quantile(0.99)),
        "preemption_rate": measure(lambda r: r.preemption_rate),
        "overflows": sum(result.overflows for result in results),
        "truncated": sum(result.truncated for result in results),
        "busy_share": measure(lambda r: r.busy_share),
        "mean_running": measure(lambda r: r.mean_running),
        "mean_kv_cache_usage": measure(lambda r: r.mean_kv_cache_usage),
        "peak_kv_cache_usage": measure(lambda r: r.peak_kv_cache_usage),
        "tokens_per_s": measure(lambda r: r.tokens_per_s),
    }


def _interval(values: list[float]) -> dict[str, float | None]:
    """Mean of the replications and half the width of its 95 % interval."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"mean": None, "half_width": None}
    mean = statistics.fmean(finite)
    half_width = None
    if len(finite) > 1:
        freedom = len(finite) - 1
        t = _T975[freedom - 1] if freedom <= len(_T975) else 1.96
        half_width = t * statistics.stdev(finite) / math.sqrt(len(finite))
    return {"mean": mean, "half_width": half_width}


def _print(document: dict[str, Any]) -> None:
    print(
        f"{document['workload']} at {document['rate']:g} req/s, router "
        f"{document['router']}, {document['requests']} requests, seeds "
        f"{', '.join(map(str, document['seeds']))}\n"
    )
    rows = {
        "requests": "requests",
        "P50 TTFT, s": "p50_ttft_s",
        "P99 TTFT, s": "p99_ttft_s",
        "P50 TPOT, ms": "p50_tpot_s",
        "P99 TPOT, ms": "p99_tpot_s",
        "P99 queue wait, s": "p99_wait_s",
        "P99 end to end, s": "p99_e2e_s",
        "preemptions a request": "preemption_rate",
        "overflows": "overflows",
        "truncated": "truncated",
        "busy share": "busy_share",
        "running, mean": "mean_running",
        "KV usage, mean": "mean_kv_cache_usage",
        "KV usage, peak": "peak_kv_cache_usage",
        "tokens/s": "tokens_per_s",
    }
    names = [
        f"{pool['name']} x{pool['instances']} ({pool['max_model_len']})"
        for pool in document["pools"]
    ]
    print(f"{'':24}" + "".join(f"{name:>24}" for name in names))
    for label, key in rows.items():
        scale = 1e3 if "ms" in label else 1
        cells = [_cell(pool[key], scale) for pool in document["pools"]]
        print(f"{label:24}" + "".join(f"{cell:>24}" for cell in cells))
    print()
    for label, key in (
        ("P99 TTFT, s", "p99_ttft_s"),
        ("P99 TPOT, s", "p99_tpot_s"),
        ("late", "late_share"),
        ("rejected", "rejected_share"),
        ("overflowed", "overflow_share"),
        ("misrouted short", "misrouted_short"),
        ("misrouted long", "misrouted_long"),
    ):
        print(f"{'fleet: ' + label:24}{_cell(document[key], 1):>24}")
    print(f"{document['wall_time_s']} s")


def _cell(value: Any, scale: float) -> str:
    if not isinstance(value, dict):
        return str(value)
    if value["mean"] is None:
        return "-"
    text = f"{scale * value['mean']:.4g}"
    if value["half_width"] is not None:
        text += f" +- {scale * value['half_width']:.2g}"
    return text
