"""``extproc plan --pool-gpu``: pools of the split that have another GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from extproc.commands.hardware_options import complete_limits, read_engine
from extproc.commands.traffic_options import OptionError
from extproc.fleet.gpus import GPUS
from extproc.fleet.question import PoolHardware
from extproc.fleet.slo import Slo, token_budget

_EXPECTED = "NAME=GPU[:GPUS_OF_AN_INSTANCE[:USD_PER_GPU_HOUR]]"


@dataclass(frozen=True, slots=True)
class PoolGpu:
    """The GPU of a pool, as given in the option."""

    pool: str
    gpu: str
    tensor_parallel_size: int | None = None
    """Number of GPUs of one instance; None for the model's default."""
    usd_per_gpu_hour: float | None = None
    """Price of one GPU-hour in dollars; None for the public price."""


def add_pool_gpu_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--pool-gpu",
        action="append",
        default=[],
        metavar="NAME=GPU[:N[:USD]]",
        help="GPU of a pool of the split, short or long, if it is not --gpu, with the "
        "GPUs of an instance and the price of a GPU-hour; repeat for more pools. "
        "Fleets are then compared in dollars",
    )


def read_pool_gpus(args: argparse.Namespace) -> list[PoolGpu]:
    """Return the GPU of each pool whose GPU differs from the fleet's.

    Raises:
        OptionError: a value has the wrong form, a GPU is unknown, a pool is named
            twice, or the fleet's hardware is not from the table of GPUs.
    """
    found = [_read(value) for value in args.pool_gpu]
    names = [each.pool for each in found]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--pool-gpu: {name} twice; expected each pool once")
    if found and (args.profile or args.step_time == "paper" or args.paper):
        raise OptionError(
            f"--pool-gpu: {args.pool_gpu[0]}; expected --gpu without --profile, "
            "--paper and --step-time paper"
        )
    if found and args.disaggregate:
        raise OptionError(
            f"--pool-gpu: {args.pool_gpu[0]}; expected no --disaggregate, which sizes "
            "pools of one GPU"
        )
    return found


def _read(value: str) -> PoolGpu:
    pool, equals, rest = value.partition("=")
    gpu, *more = rest.split(":")
    if not pool or not equals or len(more) > 2:
        raise OptionError(f"--pool-gpu: {value}; expected {_EXPECTED}")
    if gpu not in GPUS:
        raise OptionError(
            f"--pool-gpu: {value}; expected a GPU of {', '.join(GPUS)} after the ="
        )
    try:
        size = int(more[0]) if more else None
        usd = float(more[1]) if len(more) > 1 else None
    except ValueError as error:
        raise OptionError(f"--pool-gpu: {value}; expected {_EXPECTED}") from error
    if (size is not None and size < 1) or (usd is not None and not 0 <= usd < 1e6):
        raise OptionError(
            f"--pool-gpu: {value}; expected at least 1 GPU and a price of 0 or more"
        )
    return PoolGpu(pool, gpu, size, usd)


def read_pool_hardware(
    args: argparse.Namespace, slo: Slo, pools: Sequence[str]
) -> dict[str, PoolHardware]:
    """Return the hardware of each pool whose GPU differs from the fleet's.

    Limits that no option sets are derived from the pool's GPU: ``max_num_seqs`` is
    vLLM's default for this GPU, and ``max_num_batched_tokens`` is the largest value
    that keeps the SLO.

    Args:
        args: the arguments as given, without defaults for missing limits.
        pools: names of the split's pools.

    Raises:
        OptionError: as for :func:`read_pool_gpus`, or the split has no such pool, or
            the model does not fit the GPUs.
    """
    found = {}
    for own in read_pool_gpus(args):
        if own.pool not in pools:
            raise OptionError(
                f"--pool-gpu: {own.pool}; expected a pool of {', '.join(pools)}"
            )
        given = argparse.Namespace(**vars(args))
        given.gpu, given.usd_per_gpu_hour = own.gpu, own.usd_per_gpu_hour
        if own.tensor_parallel_size is not None:
            given.tensor_parallel_size = own.tensor_parallel_size
        complete = complete_limits(given)
        engine = read_engine(complete)
        budget = complete.max_num_batched_tokens or token_budget(engine.step_time, slo)
        try:
            engine.limits(complete.max_model_len, complete.max_num_seqs, budget)
        except ValueError as error:
            raise OptionError(f"--pool-gpu: {own.pool}={own.gpu}: {error}") from error
        found[own.pool] = PoolHardware(engine, complete.max_num_seqs, budget)
    return found
