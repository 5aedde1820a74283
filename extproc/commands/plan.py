"""Compute the savings of a split into pools, and of better settings without a split.

Sizes the fleet for a workload, a rate, hardware and an SLO by simulating vLLM's
scheduler: the split with the shipped router, and every baseline in the same way. Named
workloads need no download. --paper derives the papers' numbers as far as possible, and
sizes a fleet in their setting.

  extproc plan --workload azure-conv --rate 1000
  extproc plan --workload my.csv.gz --gpu H100-80GB --report p.html
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from extproc.commands.hardware_options import (
    DEFAULT_MAX_MODEL_LEN,
    DEFAULT_THRESHOLD,
    add_hardware_arguments,
    complete_limits,
    read_engine,
    read_serving,
    warn_beyond_profile,
)
from extproc.commands.plan_disaggregation import (
    add_disaggregation_arguments,
    check_disaggregation,
    disaggregate,
)
from extproc.commands.plan_energy import add_energy_arguments, check_energy, energy
from extproc.commands.plan_text import print_plan, print_policies
from extproc.commands.pool_hardware import (
    add_pool_gpu_argument,
    read_pool_gpus,
    read_pool_hardware,
)
from extproc.commands.progress import Progress
from extproc.commands.promise_options import add_promise_arguments, read_slo
from extproc.commands.run_options import add_run_arguments
from extproc.commands.text import plain_json, wrap
from extproc.commands.traffic_options import (
    OptionError,
    add_traffic_arguments,
    read_traffic,
    require_records,
)
from extproc.fleet.cost import HOURS_PER_YEAR
from extproc.fleet.declared import Declared
from extproc.fleet.emit import files
from extproc.fleet.paper_claims import claims
from extproc.fleet.plan_document import Plan, answer, as_json
from extproc.fleet.planning import PolicyTask, SizedPolicy, size_policy
from extproc.fleet.prefix_study import PrefixStudy, study, without_prefixes
from extproc.fleet.question import (
    DEFAULT_HEADROOM,
    VERIFIED_REQUESTS,
    Question,
    Setting,
    complete_slo,
    policies,
)
from extproc.fleet.report import render
from extproc.fleet.sensitivity import THRESHOLDS, misroutes, sweep
from extproc.fleet.strategy import StrategyName
from extproc.fleet.verdict import BASELINE, PAGED, SPLIT
from extproc.fleet.workload import WORKLOADS, RenewalArrivals

# The papers' two traces, as far as they are public; the tail of the papers' Azure trace
# is not public.
_PAPER_WORKLOADS = ("azure-heavy", "lmsys")
_PAPER_RATE = 1000.0
_PAPER_BATCHED_TOKENS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_traffic_arguments(parser)
    add_hardware_arguments(parser)
    parser.add_argument(
        "--threshold",
        type=int,
        action="append",
        metavar="TOKENS",
        help="max_model_len of a pool below the last; repeat for more than two "
        f"pools (default: {DEFAULT_THRESHOLD})",
    )
    parser.add_argument(
        "--max-num-seqs",
        type=int,
        help="max_num_seqs of pools that are not sized for the worst case (default: "
        "the profile's, else vLLM's for the GPU)",
    )
    add_pool_gpu_argument(parser)
    add_promise_arguments(parser)
    parser.add_argument(
        "--usd-per-gpu-hour",
        type=float,
        help="price of an hour of a GPU (default: a public price)",
    )
    parser.add_argument(
        "--hours-per-year",
        type=float,
        default=HOURS_PER_YEAR,
        help="hours that the fleet runs (default: %(default)s)",
    )
    parser.add_argument(
        "--headroom",
        type=float,
        default=DEFAULT_HEADROOM,
        metavar="SHARE",
        help="share of each pool's saturated rate to keep free (default: %(default)s)",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=VERIFIED_REQUESTS,
        help="minimum number of requests to measure for each policy once its fleet has "
        "filled; half as many are routed to find each pool's share, and three tenths "
        "test each size (default: %(default)s)",
    )
    parser.add_argument(
        "--no-sweep", action="store_true", help="skip the other thresholds"
    )
    parser.add_argument(
        "--paper", action="store_true", help="compare the papers' numbers with ours"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a report as one HTML page",
    )
    parser.add_argument(
        "--emit",
        type=Path,
        metavar="DIR",
        help="write vLLM's command lines and the router's configuration to a directory",
    )
    parser.add_argument(
        "--emit-deployments",
        action="store_true",
        help="write patches for Kubernetes Deployments as well",
    )
    add_disaggregation_arguments(parser)
    add_energy_arguments(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    try:
        report = args.report
        if report is not None and (report.is_dir() or not report.parent.is_dir()):
            raise OptionError(
                f"--report: {report}; expected a file in an existing folder"
            )
        if args.emit is not None and args.emit.exists() and not args.emit.is_dir():
            raise OptionError(f"--emit: {args.emit}; expected a directory")
        read_pool_gpus(args)
        return _run_paper(args) if args.paper else _run_plan(args)
    except OptionError as error:
        print(f"extproc plan: {error}", file=sys.stderr)
        return 2


def _run_plan(args: argparse.Namespace) -> int:
    plan, page = _plan(args)
    serving = read_serving(complete_limits(args))
    if args.report is not None:
        args.report.write_text(page, "utf-8")
        print(f"report: {args.report}", file=sys.stderr)
    if args.emit is not None:
        args.emit.mkdir(parents=True, exist_ok=True)
        for name, text in files(
            plan, serving, deployments=args.emit_deployments
        ).items():
            (args.emit / name).write_text(text, "utf-8")
        print(f"emitted: {args.emit}", file=sys.stderr)
    if args.json:
        print(plain_json(as_json(plan)))
    else:
        print_plan(plan, serving)
    return 0


def _run_paper(args: argparse.Namespace) -> int:
    document = _paper(args)
    if args.json:
        document["simulated"] = [as_json(plan) for plan in document["simulated"]]
        print(plain_json(document))
    else:
        _print_paper(document)
    return 0


def read_question(args: argparse.Namespace) -> Question:
    """Return all inputs of a plan from the arguments.

    Raises:
        OptionError: an argument is out of range.
    """
    given, args = args, complete_limits(args)
    traffic = read_traffic(args)
    workload = traffic.workload
    require_records(workload)
    engine = read_engine(args)
    thresholds = tuple(sorted(set(args.threshold)))
    _check(args, thresholds)
    try:
        slo, budget = complete_slo(
            read_slo(args),
            Setting(
                workload,
                engine,
                thresholds[-1],
                args.max_model_len,
                args.max_num_batched_tokens,
                args.seed,
            ),
            args.slo_long_ttft,
        )
    except ValueError as error:
        raise OptionError(f"--max-model-len: {error}") from error
    limits = engine.limits(args.max_model_len, args.max_num_seqs, budget)
    warn_beyond_profile(args, [limits], priced=True)
    question = Question(
        workload,
        engine,
        traffic.rate,
        traffic.arrivals,
        slo,
        thresholds,
        args.max_model_len,
        budget,
        args.max_num_seqs,
        Declared(args.declared),
        seed=args.seed,
        asked_requests=args.requests // 2,
        tried_requests=3 * args.requests // 10,
        verified_requests=args.requests,
        headroom=args.headroom,
        traffic=traffic.description,
        long_promise_given=args.slo_long_ttft is not None,
    )
    hardware = read_pool_hardware(given, slo, question.pool_names)
    return replace(question, pool_hardware=hardware)


def _check(args: argparse.Namespace, thresholds: tuple[int, ...]) -> None:
    if thresholds[0] < 2 or thresholds[-1] >= args.max_model_len:
        raise OptionError(
            f"--threshold: {', '.join(map(str, thresholds))}; expected 2 or more, and "
            f"less than --max-model-len ({args.max_model_len})"
        )
    if args.requests < 1000:
        raise OptionError(f"--requests: {args.requests}; expected >= 1000")
    for option in ("max_num_seqs", "max_num_batched_tokens", "processes"):
        value = getattr(args, option, None)
        if value is not None and value < 1:
            raise OptionError(f"--{option.replace('_', '-')}: {value}; expected >= 1")
    if not 0 <= args.headroom < 1:
        raise OptionError(f"--headroom: {args.headroom}; expected 0 <= x < 1")


def _plan(args: argparse.Namespace) -> tuple[Plan, str]:
    """Return the plan, and its HTML page if requested."""
    started = time.monotonic()
    question = read_question(args)
    check_disaggregation(args, question)
    check_energy(args)
    with _mapper(args.processes) as mapped:
        sized = _size(question, mapped)
        prefix_caching = _study_prefixes(question, sized, mapped)
    # The sweep uses throughput alone, which cannot compare instances of different
    # kinds.
    swept = not args.no_sweep and not question.pool_hardware
    points = sweep(question, THRESHOLDS) if swept else []
    plan = answer(question, sized, points, args.hours_per_year)
    if args.disaggregate:
        ways = disaggregate(complete_limits(args), question, sized[PAGED], sized[SPLIT])
        plan = replace(plan, disaggregation=ways)
    if args.energy:
        compared = {
            "today": sized[BASELINE],
            "max_num_seqs mended": sized[PAGED],
            "split": sized[SPLIT],
        }
        plan = replace(plan, energy=energy(args, question, compared))
    plan = replace(plan, prefix_caching=prefix_caching)
    if args.report is None:
        return replace(plan, wall_time_s=round(time.monotonic() - started, 1)), ""
    errors = misroutes(
        question,
        sized["split"].policy.tiers,
        (StrategyName.ROUTER, StrategyName.EMA, StrategyName.BYTES_PER_4),
        n=args.requests // 20,
    )
    plan = replace(plan, wall_time_s=round(time.monotonic() - started, 1))
    serving = read_serving(complete_limits(args))
    return plan, render(question, sized, plan, errors, serving)


@contextmanager
def _mapper(processes: int) -> Iterator[Any]:
    """Return a ``map`` that uses processes and yields results as they complete."""
    if processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap_unordered


def _size(question: Question, mapped: Any) -> dict[str, SizedPolicy]:
    tasks = [PolicyTask(question, policy) for policy in policies(question)]
    # Start the longest tasks first, so that the last tasks to finish are short.
    longest_first = sorted(
        tasks, key=lambda task: not task.policy.strategy.reads_bodies
    )
    progress = Progress("sizing", len(tasks))
    sized = {}
    for done, policy in enumerate(mapped(size_policy, longest_first), 1):
        sized[policy.policy.name] = policy
        progress.show(done)
    return {task.policy.name: sized[task.policy.name] for task in tasks}


def _study_prefixes(
    question: Question, sized: Mapping[str, SizedPolicy], mapped: Any
) -> PrefixStudy | None:
    """Return what prefix caching and a split save if requests share prefixes."""
    without = without_prefixes(question)
    if without is None:
        return None
    one, split = sized[PAGED], sized[SPLIT]
    tasks = [PolicyTask(without, each.policy) for each in (one, split)]
    uncached = {each.policy.name: each for each in mapped(size_policy, tasks)}
    return study(question, one, split, uncached)


def _paper(args: argparse.Namespace) -> dict[str, Any]:
    """Derive the papers' numbers, and size a fleet in their setting by simulation."""
    started = time.monotonic()
    args.gpu, args.step_time, args.profile = "A100-80GB", "paper", None
    engine = read_engine(args)
    simulated = []
    with _mapper(args.processes) as mapped:
        for name in _PAPER_WORKLOADS:
            workload = WORKLOADS[name]
            slo, budget = complete_slo(
                read_slo(args),
                Setting(
                    workload,
                    engine,
                    DEFAULT_THRESHOLD,
                    DEFAULT_MAX_MODEL_LEN,
                    _PAPER_BATCHED_TOKENS,
                    args.seed,
                ),
            )
            question = Question(
                workload,
                engine,
                _PAPER_RATE,
                RenewalArrivals(_PAPER_RATE),
                slo,
                (DEFAULT_THRESHOLD,),
                DEFAULT_MAX_MODEL_LEN,
                budget,
                seed=args.seed,
                headroom=args.headroom,
            )
            sized = _size(question, mapped)
            simulated.append(answer(question, sized))
    return {
        "claims": [asdict(claim) for claim in claims()],
        "simulated": simulated,
        "seed": args.seed,
        "wall_time_s": round(time.monotonic() - started, 1),
    }


def _print_paper(document: dict[str, Any]) -> None:
    print(f"{'':4} {'claim, and its derivation':42} {'theirs':>15} {'ours':>15}")
    for claim in document["claims"]:
        mark = "=" if claim["exact"] else "not"
        print(f"{mark:4} {claim['what']:42} {claim['theirs']:>15} {claim['ours']:>15}")
        print(wrap(claim["note"], indent=5))
    for plan in document["simulated"]:
        print(f"\n{plan.workload} in the papers' setting, simulated:")
        print_policies(plan.policies)
    print(f"\nseed {document['seed']}, {document['wall_time_s']} s")
