"""``extproc plan --energy``: ranges for the kWh, joules and CO2 of each fleet."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from extproc.commands.pool_hardware import read_pool_gpus
from extproc.commands.text import wrap
from extproc.commands.traffic_options import OptionError
from extproc.fleet.energy import GRID_G_PER_KWH, HOST_WATTS, POWER_CURVES, PUE, Range
from extproc.fleet.energy_rows import EnergyRows, Surroundings, energy_rows
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question


def add_energy_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("energy and carbon")
    group.add_argument(
        "--energy",
        action="store_true",
        help="print the fleets' kWh a year, joules an output token and CO2",
    )
    for option, metavar, usual, what in (
        ("--host-watts-per-gpu", "W", HOST_WATTS, "power of the host, for each GPU"),
        (
            "--pue",
            "RATIO",
            PUE,
            "power of the data center divided by that of its computers",
        ),
        ("--grid-g-per-kwh", "G", GRID_G_PER_KWH, "grams of CO2 for a kWh"),
    ):
        group.add_argument(
            option,
            type=float,
            metavar=metavar,
            help=f"{what} (default: {usual.low:g} to {usual.high:g})",
        )


def check_energy(args: argparse.Namespace) -> None:
    """Reject a GPU without a power curve, and values out of range.

    Raises:
        OptionError: a profile is given, or a value is below its minimum.
    """
    if args.energy and args.profile:
        raise OptionError(
            "--energy: a profile has no GPU name; expected --gpu without --profile"
        )
    for option, least in (("host_watts_per_gpu", 0), ("pue", 1), ("grid_g_per_kwh", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise OptionError(
                f"--{option.replace('_', '-')}: {value:g}; expected >= {least}"
            )


def energy(
    args: argparse.Namespace, question: Question, sized: Mapping[str, SizedPolicy]
) -> EnergyRows:
    """Return the energy of the policies, keyed by the policies' names in the report."""
    around = Surroundings(
        _given(args.host_watts_per_gpu, HOST_WATTS),
        _given(args.pue, PUE),
        _given(args.grid_g_per_kwh, GRID_G_PER_KWH),
    )
    curves = {each.pool: POWER_CURVES[each.gpu] for each in read_pool_gpus(args)}
    return energy_rows(question, sized, POWER_CURVES[args.gpu], around, curves)


def _given(value: float | None, usual: Range) -> Range:
    return usual if value is None else Range(value, value, value)


def print_energy(found: EnergyRows) -> None:
    """Print the table, the comparison and the source."""
    print(
        f"{'':26}{'GPUs':>7} {'W a GPU':>8} {'idle':>6} {'GWh a year':>16} "
        f"{'J a token':>14} {'t CO2 a year':>18}"
    )
    for row in found.rows:
        of = row.energy
        print(
            f"{row.name:26}{row.gpus:7,} {row.watts_per_gpu:8.0f} {row.idle:6.1%} "
            f"{of.kwh_per_year.scaled(1e-6)!s:>16} "
            f"{of.joules_per_token!s:>14} "
            f"{of.kg_co2_per_year.scaled(1e-3)!s:>18}"
        )
    kind = "" if found.measured else ", not measured on this GPU"
    print(wrap(f"{found.relation} Power curve: {found.source}{kind}."))
