"""The promise options of ``plan`` and ``simulate``: the limits of an SLO."""

from __future__ import annotations

import argparse

from extproc.commands.traffic_options import OptionError
from extproc.fleet.slo import Slo


def add_promise_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the SLO options."""
    group = parser.add_argument_group("promises")
    group.add_argument(
        "--slo-ttft",
        type=float,
        default=2.0,
        metavar="S",
        help="P99 of the time to the first token (default: %(default)s)",
    )
    group.add_argument(
        "--slo-tpot",
        type=float,
        default=0.08,
        metavar="S",
        help="P99 of the time for each further token (default: %(default)s)",
    )
    group.add_argument(
        "--slo-long-ttft",
        type=float,
        metavar="S",
        help="P99 of the time to the first token of requests above the last threshold "
        "(default: twice their time on an idle instance)",
    )
    group.add_argument(
        "--slo-preemption-rate",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="preemptions a request (default: %(default)s)",
    )


def read_slo(args: argparse.Namespace) -> Slo:
    """Return the SLOs.

    Raises:
        OptionError: a value is out of range.
    """
    for option in ("slo_ttft", "slo_tpot", "slo_long_ttft"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            raise OptionError(f"--{option.replace('_', '-')}: {value}; expected > 0")
    if args.slo_preemption_rate < 0:
        raise OptionError(
            f"--slo-preemption-rate: {args.slo_preemption_rate}; expected >= 0"
        )
    return Slo(args.slo_ttft, args.slo_tpot, args.slo_preemption_rate)
