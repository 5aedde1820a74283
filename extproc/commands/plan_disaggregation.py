"""``extproc plan --disaggregate``: separate prefill and decode instances."""

from __future__ import annotations

import argparse

from extproc.commands.hardware_options import read_deployment
from extproc.commands.text import wrap
from extproc.commands.traffic_options import OptionError
from extproc.fleet.four_ways import FourWays, Pair, four_ways
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.prefill_decode import KvTransfer
from extproc.fleet.question import Question
from extproc.fleet.replay import Replay

_BYTES_PER_GBIT = 1e9 / 8


def add_disaggregation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("separate prefill and decode")
    group.add_argument(
        "--disaggregate",
        action="store_true",
        help="size prefill and decode instances as well, for all requests and for "
        "each pool of the split",
    )
    group.add_argument(
        "--kv-transfer-gbits",
        type=float,
        default=100.0,
        metavar="GBIT/S",
        help="bandwidth of each instance for KV cache transfers (default: %(default)g)",
    )


def check_disaggregation(args: argparse.Namespace, question: Question) -> None:
    """Reject unsupported combinations of options before anything is simulated.

    Raises:
        OptionError: the arguments select a profile, the papers' step times, arrival
            times from a file, or a network without bandwidth.
    """
    if not args.disaggregate:
        return
    if args.profile or args.step_time == "paper":
        raise OptionError(
            "--disaggregate: no model's KV cache is known; expected --model without "
            "--profile and --step-time paper"
        )
    if isinstance(question.arrivals, Replay):
        raise OptionError(
            "--disaggregate: the instants of a file; expected --arrivals poisson or "
            "bursty"
        )
    if args.kv_transfer_gbits <= 0:
        raise OptionError(
            f"--kv-transfer-gbits: {args.kv_transfer_gbits:g}; expected > 0"
        )


def disaggregate(
    args: argparse.Namespace,
    question: Question,
    one_pool: SizedPolicy,
    split: SizedPolicy,
) -> FourWays:
    """Size the fleet that the arguments select, once for each way to run it."""
    model = read_deployment(args).model
    bytes_per_s = args.kv_transfer_gbits * _BYTES_PER_GBIT
    transfer = KvTransfer.of(model, bytes_per_s)
    return four_ways(question, one_pool, split, transfer)


def print_four_ways(found: FourWays) -> None:
    """Print the table and the verdict."""
    gbits = found.transfer_bytes_per_s / _BYTES_PER_GBIT
    print(
        f"separate prefill and decode, {gbits:g} Gbit/s an instance, "
        f"{found.kv_bytes_per_token / 1024:,.0f} KiB a token:"
    )
    print(f"{'':25} {'GPUs':>7}  prefill + decode, P99 TTFT, P99 TPOT, transfer")
    for way in found.ways:
        mark = "" if way.slo_met else "  promise not kept"
        print(f"{way.name:25} {way.gpus:7,}{mark}")
        for pair in way.pairs:
            print(f"  {pair.name:23} {'':7}  {_figures(pair)}")
    print(wrap(found.verdict))


def _figures(pair: Pair) -> str:
    if pair.p99_ttft_s is None:
        return "no size that was tried keeps the promises"
    tpot_ms = "-" if pair.p99_tpot_s is None else f"{1e3 * pair.p99_tpot_s:.1f} ms"
    moved_ms = 1e3 * (pair.mean_transfer_s or 0.0)
    return (
        f"{pair.prefill:,} + {pair.decode:,}, {pair.p99_ttft_s:.2f} s, {tpot_ms}, "
        f"{moved_ms:.0f} ms"
    )
