"""A simulated fleet as a document: the figures of the fleet and of each pool."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extproc.commands.traffic_options import Traffic
from extproc.fleet.figures import fleet_figures, intervals, plain, pool_figures
from extproc.fleet.results import Result, RunState
from extproc.fleet.simulation import PoolSpec
from extproc.fleet.sizing import SizingTask, fitting, saturated_rate


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """A pool after the run."""

    spec: PoolSpec
    task: SizingTask
    """The pool with the requests that are sent to it."""
    alone: Result | None
    """Result of the pool alone; None if the fleet's results have enough requests."""


def document(
    args: argparse.Namespace,
    traffic: Traffic,
    results: Sequence[Result],
    pools: Sequence[SimulatedPool],
) -> dict[str, Any]:
    """Return the JSON object of ``extproc simulate --json``, without the run's time.

    Args:
        args: the arguments of the command.
        results: the result of each run.
        pools: the fleet's pools, in the order of the results.
    """
    return {
        "workload": args.workload,
        "rate": traffic.rate,
        "traffic": traffic.description,
        "router": str(args.router),
        "requests": sum(result.measured for result in results),
        "duration_s": plain(sum(result.duration_s for result in results)),
        "fill_s": plain(max(result.fill_s for result in results)),
        "state": str(_state(results)),
        "replications": len(results),
        "seeds": [result.seed for result in results],
        **intervals(fleet_figures(results)),
        "pools": [_pool(results, index, pool) for index, pool in enumerate(pools)],
    }


def _state(results: Sequence[Result]) -> RunState:
    """Return the worst state among the runs."""
    order = (
        RunState.OVERLOADED,
        RunState.UNSETTLED,
        RunState.TRANSIENT,
        RunState.STEADY,
    )
    return min((result.state for result in results), key=order.index)


def _pool(results: Sequence[Result], index: int, pool: SimulatedPool) -> dict[str, Any]:
    spec, own = pool.spec, pool.alone
    rate = _saturated_rate(pool.task, spec.instances)
    figures = (
        pool_figures(results, index, rate)
        if own is None
        else pool_figures([own], 0, rate)
    )
    return {
        "name": spec.name,
        "instances": spec.instances,
        "max_model_len": spec.limits.max_model_len,
        "max_num_seqs": spec.limits.max_num_seqs,
        "max_num_batched_tokens": spec.limits.max_num_batched_tokens,
        "requests": figures.requests,
        **intervals(figures),
        "measured_alone": own is not None,
        "overflows": sum(result.pools[index].overflows for result in results),
        "truncated": sum(result.pools[index].truncated for result in results),
    }


def _saturated_rate(task: SizingTask, instances: int) -> float:
    """Return the maximum request rate of a pool, in req/s."""
    limits = task.tier.limits
    lengths = fitting(task.traffic.lengths, limits.max_model_len)
    return instances * saturated_rate(limits, task.step_time, lengths, task.seed)
