"""The traffic options of ``plan`` and ``simulate``: lengths, rate and arrival times."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from extproc.fleet.conversations import (
    CONVERSATIONS,
    WORKLOAD_NAMES,
    conversations,
)
from extproc.fleet.prefixes import find_prefixes
from extproc.fleet.replay import LONGEST_S, Replay, busiest, span_s
from extproc.fleet.usage_log import LEAST_RECORDS, TraceFormatError, read_records
from extproc.fleet.workload import (
    WORKLOADS,
    Arrivals,
    Independent,
    ModulatedArrivals,
    Recorded,
    RenewalArrivals,
    RequestStream,
    Workload,
)

ARRIVALS = ("poisson", "bursty", "recorded")
#: Request rate of a named workload, in req/s, as in the papers.
DEFAULT_RATE = 1000.0


class OptionError(Exception):
    """An invalid option; the message has option, value and expected form."""


def add_traffic_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the traffic options."""
    group = parser.add_argument_group("traffic")
    group.add_argument(
        "--workload",
        default="azure-conv",
        metavar="NAME|FILE",
        help=f"{', '.join(WORKLOAD_NAMES)}; or a file of requests with token "
        "counts, as CSV, JSON lines or JSON from a public trace, load generator, "
        "gateway or access log, also gzipped (default: azure-conv)",
    )
    group.add_argument(
        "--served-model",
        metavar="NAME",
        help="base model to read from a recording of several models",
    )
    group.add_argument(
        "--rate",
        type=float,
        help="requests a second (default: the file's rate in its busiest hour, or "
        f"{DEFAULT_RATE:g} for a named workload)",
    )
    group.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        help="arrival times; recorded: those of the file's busiest hour, in shifted "
        "copies if --rate is higher; bursty: three times the quiet rate in a tenth of "
        "the time (default: recorded for a file with times, else poisson)",
    )
    group.add_argument(
        "--cv",
        type=float,
        default=1.0,
        help="coefficient of variation of the gaps between poisson arrivals; 1 is "
        "Poisson (default: %(default)s)",
    )
    group.add_argument(
        "--declared",
        choices=("exact", "absent"),
        default="exact",
        help="max_tokens that clients declare: the length of their output, or none "
        "(default: %(default)s)",
    )


def _of_model(lines: Iterable[str], model: str) -> Iterator[str]:
    """Yield a recording's lines about requests that one base model's pools served.

    Raises:
        TraceFormatError: no line belongs to the model; the message lists the models in
            the recording.
    """
    others: set[str] = set()
    found = False
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        decision = record.get("decision") if isinstance(record, dict) else None
        name = decision.get("base_model") if isinstance(decision, dict) else None
        if name == model:
            found = True
            yield line
        elif isinstance(name, str) and name:
            others.add(name)
    if not found:
        known = ", ".join(sorted(others)) or "a recording of several models"
        raise TraceFormatError(f"--served-model: {model!r}; expected {known}")


def read_workload(name: str, served_model: str | None = None) -> Workload:
    """Return a named workload, or a workload made from the records of a file.

    Args:
        name: a workload's name or a file name.
        served_model: base model whose records are used; None to use all records.

    Raises:
        OptionError: the name is unknown, or the file cannot be read.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    if name == CONVERSATIONS:
        return conversations()
    path = Path(name)
    if not path.is_file():
        raise OptionError(
            f"--workload: {name}; expected a file or one of {', '.join(WORKLOAD_NAMES)}"
        )
    try:
        with open_text(path) as lines:
            wanted = lines if served_model is None else _of_model(lines, served_model)
            records = read_records(wanted, path.name)
    except (OSError, UnicodeError, TraceFormatError) as error:
        raise OptionError(f"--workload: {error}") from error
    if records.skipped:
        print(
            f"extproc: {path.name}: {records.skipped} of {records.read} records have "
            "no usable token counts and are skipped",
            file=sys.stderr,
        )
    for note in records.notes:
        print(f"extproc: {path.name}: {note}", file=sys.stderr)
    return records.workload


def require_records(workload: Workload) -> None:
    """Reject a file with too few requests to estimate a median.

    Raises:
        OptionError: the file has fewer than 20 records.
    """
    if not isinstance(workload.lengths, Recorded):
        return
    records = len(workload.lengths.prompts)
    if records < LEAST_RECORDS:
        raise OptionError(
            f"--workload: {records} usable records of {workload.name}; expected at "
            f"least {LEAST_RECORDS}, and 1,000 for a P99"
        )


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file; decompress gzip, whatever the file's name."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        with gzip.open(raw) if packed else raw as binary:
            # Spreadsheets write "Unicode text" as UTF-16, with a byte order mark.
            marked = binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            encoding = "utf-16" if marked else "utf-8-sig"
            yield io.TextIOWrapper(binary, encoding=encoding, newline="")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests with their arrival process."""

    workload: Workload
    rate: float
    """Average rate, in requests a second."""
    arrivals: Arrivals | Replay
    """Arrival times independent of the lengths, or a replayed file."""
    description: str
    """Description of the traffic for the operator."""

    @property
    def stream(self) -> RequestStream:
        """Return the stream of arrival times and lengths."""
        if isinstance(self.arrivals, Replay):
            return self.arrivals
        return Independent(self.workload.lengths, self.arrivals)


def read_traffic(args: argparse.Namespace) -> Traffic:
    """Return the workload, its rate and its arrivals.

    Raises:
        OptionError: the workload cannot be read, a rate or a variation is out of range,
            neither the file nor the options determine a rate, or the recording is
            empty.
    """
    workload = read_workload(args.workload, args.served_model)
    if args.rate is not None and args.rate <= 0:
        raise OptionError(f"--rate: {args.rate}; expected > 0")
    if args.cv <= 0:
        raise OptionError(f"--cv: {args.cv}; expected > 0")
    hour = _busiest_hour(workload)
    if args.arrivals == "recorded" and hour is None:
        raise OptionError(
            f"--arrivals: recorded; expected a --workload file with times; "
            f"{workload.name} has none"
        )
    if hour is not None and args.cv == 1 and args.arrivals in (None, "recorded"):
        return _replayed(workload, args.rate)
    rate = args.rate or (hour.rate if hour is not None else None)
    if rate is None and workload.name not in WORKLOADS:
        raise OptionError(
            f"--rate: missing; expected requests a second, for {workload.name} has no "
            "arrival times"
        )
    rate = rate or DEFAULT_RATE
    if args.arrivals == "bursty":
        description = (
            f"bursts at three times the quiet rate, {rate:.4g} req/s on average"
        )
        return Traffic(workload, rate, ModulatedArrivals(rate), description)
    kind = "Poisson" if args.cv == 1 else f"gaps of variation {args.cv:g}"
    description = f"{kind} arrivals at {rate:.4g} req/s"
    return Traffic(workload, rate, RenewalArrivals(rate, args.cv), description)


def _busiest_hour(workload: Workload) -> Replay | None:
    if workload.arrivals is None or not isinstance(workload.lengths, Recorded):
        return None
    return busiest(
        workload.arrivals,
        workload.lengths,
        most_requests=None,
        prefixes=find_prefixes(workload),
    )


def _replayed(workload: Workload, rate: float | None) -> Traffic:
    """Return the busiest part of a file, and a description of this choice."""
    assert workload.arrivals is not None
    assert isinstance(workload.lengths, Recorded)
    hour = _busiest_hour(workload)
    assert hour is not None
    replayed = busiest(
        workload.arrivals, workload.lengths, rate, prefixes=find_prefixes(workload)
    )
    whole_s = span_s(workload.arrivals)
    part = "the whole file" if replayed.period_s >= whole_s else "its busiest"
    description = f"recorded arrivals: {part}, {_lasting(replayed.period_s)}"
    if replayed.period_s < whole_s:
        description += f" from {_lasting(replayed.start_s)} on, of {_lasting(whole_s)}"
    description += (
        f", {len(replayed.instants):,} requests, {replayed.own_rate:.4g} req/s"
    )
    if hour.period_s < whole_s and replayed.period_s < LONGEST_S:
        description += f" (its busiest hour has {hour.own_rate:.4g})"
    if replayed.copies > 1:
        description += f"; {replayed.copies:.4g} overlaid copies, each shifted"
        description += f" by up to a minute, make {replayed.rate:.4g} req/s"
    elif replayed.copies < 1:
        description += (
            f"; of them {replayed.copies:.2%}, at random: {replayed.rate:.4g} req/s"
        )
    return Traffic(workload, replayed.rate, replayed, description)


def _lasting(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
