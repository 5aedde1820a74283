"""What ``plan`` and ``simulate`` have in common: traffic, hardware, promises."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from extproc.fleet.hardware import GPUS, MODELS, Deployment
from extproc.fleet.hardware_profile import Profile, ProfileError
from extproc.fleet.sizing import Engine
from extproc.fleet.slo import Slo
from extproc.fleet.steptime import (
    PAPER_KV_TOKENS,
    PAPER_STEP_TIMES,
    Roofline,
    paper_step_time,
)
from extproc.fleet.usage_log import TraceFormatError, read_records
from extproc.fleet.workload import (
    WORKLOADS,
    Arrivals,
    ModulatedArrivals,
    RenewalArrivals,
    ReplayedArrivals,
    Workload,
)

#: The papers' pools.
DEFAULT_THRESHOLD = 8192
DEFAULT_MAX_MODEL_LEN = 65_536
ARRIVALS = ("poisson", "bursty", "recorded")
STEP_TIMES = ("roofline", "paper")


class OptionError(Exception):
    """The operator's mistake: one line of option, value and what is accepted."""


def add_traffic_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what arrives."""
    group = parser.add_argument_group("traffic")
    group.add_argument(
        "--workload",
        default="azure-conv",
        metavar="NAME|FILE",
        help=f"{', '.join(WORKLOADS)}; or a file of requests with token counts: CSV, "
        "JSON lines or a JSON document, as public traces, load generators, gateways "
        "and access logs write them; .gz as well; default azure-conv",
    )
    group.add_argument(
        "--rate", type=float, default=1000.0, help="requests a second; default 1000"
    )
    group.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        help="bursty: three times the quiet rate in a tenth of the time; recorded: the "
        "instants of the file, stretched to --rate",
    )
    group.add_argument(
        "--cv",
        type=float,
        default=1.0,
        help="coefficient of variation of the gaps; 1 is Poisson",
    )
    group.add_argument(
        "--declared",
        choices=("exact", "absent"),
        default="exact",
        help="what clients say of their output: its length, or nothing",
    )


def add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what serves it."""
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--model",
        choices=list(MODELS),
        default="Llama-3-70B",
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; default Llama-3-70B",
    )
    group.add_argument(
        "--gpu",
        choices=list(GPUS),
        default="A100-80GB",
        metavar="NAME",
        help=f"one of {', '.join(GPUS)}; default A100-80GB",
    )
    group.add_argument(
        "--tensor-parallel-size",
        type=int,
        help="GPUs of an instance; default: the model's",
    )
    group.add_argument(
        "--gpu-memory-utilization", type=float, default=0.9, help="vLLM's; default 0.9"
    )
    group.add_argument(
        "--step-time",
        choices=STEP_TIMES,
        default="roofline",
        help="paper: the papers' W + H n, on their 1,048,576 tokens of KV cache",
    )
    group.add_argument(
        "--profile",
        metavar="FILE",
        help="of `extproc profile`, in place of model, GPU and step time",
    )
    group.add_argument(
        "--max-model-len",
        type=int,
        default=DEFAULT_MAX_MODEL_LEN,
        help=f"of the last pool; default {DEFAULT_MAX_MODEL_LEN}",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        help="of every instance; default: as large as the TPOT promise lets it be",
    )


def add_promise_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what users are promised."""
    group = parser.add_argument_group("promises")
    group.add_argument(
        "--slo-ttft", type=float, default=2.0, metavar="S", help="P99; default 2.0"
    )
    group.add_argument(
        "--slo-tpot", type=float, default=0.08, metavar="S", help="P99; default 0.08"
    )
    group.add_argument(
        "--slo-preemption-rate",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="preemptions a request; default 0.01",
    )


def read_workload(name: str) -> Workload:
    """A named workload, or the records of a file.

    Raises:
        OptionError: neither a name nor a file that can be read.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    path = Path(name)
    if not path.is_file():
        raise OptionError(
            f"--workload: {name}, expected a file or one of {', '.join(WORKLOADS)}"
        )
    try:
        with open_text(path) as lines:
            records = read_records(lines, path.name)
    except (OSError, UnicodeError, TraceFormatError) as error:
        raise OptionError(f"--workload: {error}") from error
    if records.skipped:
        print(
            f"extproc: {path.name}: {records.skipped} of {records.read} records have "
            "no usable token counts and are left out",
            file=sys.stderr,
        )
    for note in records.notes:
        print(f"extproc: {path.name}: {note}", file=sys.stderr)
    return records.workload


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, gunzipping what is gzipped whatever its name."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        with gzip.open(raw) if packed else raw as binary:
            # Spreadsheets write "Unicode text" as UTF-16, with a byte order mark.
            marked = binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            encoding = "utf-16" if marked else "utf-8-sig"
            yield io.TextIOWrapper(binary, encoding=encoding, newline="")


def read_arrivals(args: argparse.Namespace, workload: Workload) -> Arrivals:
    """The arrival process that the arguments ask for.

    Raises:
        OptionError: a rate or variation out of range, or nothing recorded.
    """
    if args.rate <= 0:
        raise OptionError(f"--rate: {args.rate}, expected > 0")
    if args.cv <= 0:
        raise OptionError(f"--cv: {args.cv}, expected > 0")
    if args.arrivals == "bursty":
        return ModulatedArrivals(args.rate)
    if args.arrivals == "recorded":
        if workload.arrivals is None:
            raise OptionError(
                f"--arrivals: recorded, expected a --workload file with times, "
                f"{workload.name} has none"
            )
        return ReplayedArrivals(workload.arrivals, args.rate)
    return RenewalArrivals(args.rate, args.cv)


def read_engine(args: argparse.Namespace) -> Engine:
    """One instance, from a profile or from tables.

    Raises:
        OptionError: a profile that cannot be read, or weights that do not fit.
    """
    if args.profile:
        return _profiled(args.profile, args.usd_per_gpu_hour)
    model, gpu = MODELS[args.model], GPUS[args.gpu]
    usd = gpu.usd_per_hour if args.usd_per_gpu_hour is None else args.usd_per_gpu_hour
    if args.step_time == "paper":
        if args.gpu not in PAPER_STEP_TIMES:
            raise OptionError(
                f"--step-time: paper, expected --gpu {' or '.join(PAPER_STEP_TIMES)}"
            )
        return Engine(
            f"{args.gpu}, the papers' W + H n",
            paper_step_time(args.gpu),
            PAPER_KV_TOKENS // 16 + 1,
            16,
            1,
            usd,
        )
    gpus = args.tensor_parallel_size or model.tensor_parallel_size
    if gpus < 1:
        raise OptionError(f"--tensor-parallel-size: {gpus}, expected >= 1")
    deployment = Deployment(model, gpu, gpus, args.gpu_memory_utilization)
    if deployment.num_blocks < 2:
        raise OptionError(
            f"--tensor-parallel-size: {gpus}, expected more: {model.name} leaves no "
            f"room for a KV cache on {gpus} x {gpu.name}"
        )
    return Engine(
        f"{model.name} on {gpus} x {gpu.name}",
        Roofline(deployment),
        deployment.num_blocks,
        deployment.block_size,
        gpus,
        usd,
    )


def _profiled(name: str, usd: float | None) -> Engine:
    try:
        profile = Profile.from_document(json.loads(Path(name).read_text()))
    except (OSError, ValueError, ProfileError) as error:
        raise OptionError(f"--profile: {name}: {error}") from error
    return Engine(
        f"{profile.model} as profiled",
        profile.step_time,
        profile.num_blocks,
        profile.block_size,
        profile.gpus,
        0.0 if usd is None else usd,
    )


def read_slo(args: argparse.Namespace) -> Slo:
    """The promises.

    Raises:
        OptionError: one out of range.
    """
    for option in ("slo_ttft", "slo_tpot"):
        value = getattr(args, option)
        if value <= 0:
            raise OptionError(f"--{option.replace('_', '-')}: {value}, expected > 0")
    if args.slo_preemption_rate < 0:
        raise OptionError(
            f"--slo-preemption-rate: {args.slo_preemption_rate}, expected >= 0"
        )
    return Slo(args.slo_ttft, args.slo_tpot, args.slo_preemption_rate)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the answer is given."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--seed", type=int, default=42, help="default 42")


class Progress:
    """A bar on standard error, if somebody is looking."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = max(1, total)
        self._shown = sys.stderr.isatty()
        self.show(0)

    def show(self, done: int) -> None:
        """Draw the bar at so many of the total."""
        if not self._shown:
            return
        filled = 30 * min(done, self._total) // self._total
        bar = "#" * filled + "." * (30 - filled)
        end = "\n" if done >= self._total else ""
        print(
            f"\r{self._label} [{bar}] {done}/{self._total}",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def plain_json(document: dict[str, Any]) -> str:
    """One line of JSON; NaN would not be JSON, and is refused."""
    return json.dumps(document, allow_nan=False)
