"""What a split into pools would save, beside what it would save without one.

Sizes the fleet for a workload, a rate, hardware and an SLO: the split with the shipped
router, and every baseline the same way, by simulating vLLM's scheduler. Named workloads
need no download. --paper derives the numbers of the papers that can be derived, and
sizes their setting.

  extproc plan --workload azure-conv --rate 1000
  extproc plan --workload my.csv.gz --gpu H100-80GB --report p.html
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from extproc.commands.fleet_options import (
    DEFAULT_MAX_MODEL_LEN,
    DEFAULT_THRESHOLD,
    Progress,
    add_hardware_arguments,
    add_output_arguments,
    add_promise_arguments,
    complete_limits,
    plain_json,
    read_engine,
    read_slo,
    warn_beyond_profile,
)
from extproc.commands.text import wrap
from extproc.commands.traffic_options import (
    OptionError,
    add_traffic_arguments,
    read_traffic,
    require_records,
)
from extproc.fleet.cost import HOURS_PER_YEAR
from extproc.fleet.declared import Declared
from extproc.fleet.paper_claims import claims
from extproc.fleet.planning import (
    DEFAULT_HEADROOM,
    VERIFIED_REQUESTS,
    PolicyTask,
    Question,
    SizedPolicy,
    complete_slo,
    policies,
    size_policy,
)
from extproc.fleet.report import render
from extproc.fleet.sensitivity import THRESHOLDS, misroutes, sweep
from extproc.fleet.strategy import StrategyName
from extproc.fleet.verdict import Prices, answer
from extproc.fleet.workload import WORKLOADS, RenewalArrivals

# The papers' two traces, as far as they can be had: their Azure tail is not public.
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
        help="max_model_len of a pool below the last; repeat it for more than two "
        f"pools; default {DEFAULT_THRESHOLD}",
    )
    parser.add_argument(
        "--max-num-seqs",
        type=int,
        help="of pools that are not sized for the worst case; default: vLLM's on the "
        "GPU, or the profile's",
    )
    add_promise_arguments(parser)
    parser.add_argument(
        "--usd-per-gpu-hour", type=float, help="default: a public price of the GPU"
    )
    parser.add_argument(
        "--hours-per-year", type=float, default=HOURS_PER_YEAR, help="default 8760"
    )
    parser.add_argument(
        "--headroom",
        type=float,
        default=DEFAULT_HEADROOM,
        metavar="SHARE",
        help="share of each pool's saturated rate to keep free; default %(default)s",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=VERIFIED_REQUESTS,
        help="requests to measure for each policy at the end, once its fleet has "
        "filled, at the least; half as many are asked where they go, three tenths try "
        "each size; default %(default)s",
    )
    parser.add_argument(
        "--no-sweep", action="store_true", help="leave the other thresholds out"
    )
    parser.add_argument(
        "--paper", action="store_true", help="the papers' numbers beside ours"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="one page")
    parser.add_argument(
        "--processes", type=int, default=min(4, os.cpu_count() or 1), help="at most"
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    try:
        if args.report is not None and not args.report.parent.is_dir():
            raise OptionError(
                f"--report: {args.report}, expected a file in a folder that is there"
            )
        document = _paper(args) if args.paper else _plan(args)
    except OptionError as error:
        print(f"extproc plan: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(plain_json(document))
    elif args.paper:
        _print_paper(document)
    else:
        _print_plan(document)
    return 0


def read_question(args: argparse.Namespace) -> Question:
    """Everything that the arguments ask.

    Raises:
        OptionError: one of them is out of range.
    """
    args = complete_limits(args)
    traffic = read_traffic(args)
    workload = traffic.workload
    require_records(workload)
    engine = read_engine(args)
    thresholds = tuple(sorted(set(args.threshold)))
    _check(args, thresholds)
    try:
        slo, budget = complete_slo(
            read_slo(args),
            workload,
            engine,
            thresholds,
            args.max_model_len,
            args.max_num_batched_tokens,
            args.seed,
        )
    except ValueError as error:
        raise OptionError(f"--max-model-len: {error}") from error
    limits = engine.limits(args.max_model_len, args.max_num_seqs, budget)
    warn_beyond_profile(args, [limits], priced=True)
    return Question(
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
        traffic=traffic.said,
    )


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


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    question = read_question(args)
    prices = Prices(
        question.engine.usd_per_gpu_hour, question.engine.gpus, args.hours_per_year
    )
    with _mapper(args.processes) as mapped:
        sized = _size(question, mapped)
    points = [] if args.no_sweep else sweep(question, THRESHOLDS)
    document = answer(question, sized, prices, points)
    document["wall_time_s"] = round(time.monotonic() - started, 1)
    if args.report is not None:
        errors = misroutes(
            question,
            sized["split"].policy.tiers,
            (StrategyName.ROUTER, StrategyName.EMA, StrategyName.BYTES_PER_4),
            n=args.requests // 20,
        )
        args.report.write_text(render(question, sized, document, errors), "utf-8")
        print(f"report: {args.report}", file=sys.stderr)
    return document


@contextmanager
def _mapper(processes: int) -> Iterator[Any]:
    """An ``imap`` over processes, or in this one."""
    if processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap


def _size(question: Question, mapped: Any) -> dict[str, SizedPolicy]:
    tasks = [PolicyTask(question, policy) for policy in policies(question)]
    progress = Progress("sizing", len(tasks))
    sized = {}
    for done, policy in enumerate(mapped(size_policy, tasks), 1):
        sized[policy.policy.name] = policy
        progress.show(done)
    return sized


def _paper(args: argparse.Namespace) -> dict[str, Any]:
    """Derive what can be derived, and size the papers' setting by our means."""
    started = time.monotonic()
    args.gpu, args.step_time, args.profile = "A100-80GB", "paper", None
    engine = read_engine(args)
    simulated = []
    with _mapper(args.processes) as mapped:
        for name in _PAPER_WORKLOADS:
            workload = WORKLOADS[name]
            slo, budget = complete_slo(
                read_slo(args),
                workload,
                engine,
                (DEFAULT_THRESHOLD,),
                DEFAULT_MAX_MODEL_LEN,
                _PAPER_BATCHED_TOKENS,
                args.seed,
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
            prices = Prices(engine.usd_per_gpu_hour, engine.gpus)
            simulated.append(answer(question, sized, prices))
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
        print(f"\n{plan['workload']} in the papers' setting, simulated:")
        _print_policies(plan)
    print(f"\nseed {document['seed']}, {document['wall_time_s']} s")


def _print_plan(document: dict[str, Any]) -> None:
    slo = document["slo"]
    synthetic = ", synthetic" if document["synthetic"] else ""
    for line in (
        f"{document['workload']} ({document['source']}{synthetic}) at "
        f"{document['rate']:.4g} req/s on {document['engine']}; {document['traffic']}",
        f"promised: P99 TTFT {slo['p99_ttft_s']:g} s ({slo['long_ttft_s']:.3g} s over "
        f"{slo['long_tokens']:,} tokens), P99 TPOT {1e3 * slo['p99_tpot_s']:g} ms, "
        f"preemptions {slo['preemption_rate']:g} a request",
    ):
        print(wrap(line))
    print()
    _print_pools(document)
    print()
    _print_policies(document)
    if document["sweep"]:
        print("\nby throughput alone, saving against the papers' baseline:")
        print(" threshold   alpha     rho   formula  worst-case split  paged split")
        for point in document["sweep"]:
            print(
                f"{point['threshold_tokens']:10,} {point['short_fraction']:7.3f} "
                f"{point['throughput_gain']:7.2f} {point['formula']:9.1%} "
                f"{point['worst_case_saving']:17.1%} {point['paged_saving']:12.1%}"
            )
    print()
    for line in (
        f"alpha {document['alpha']:.4f}, rho {document['rho']:.2f}: formula "
        f"{document['formula_saving_pct']} %, simulated {document['saving_pct']} %: "
        f"{document['saving_from_not_sizing_for_the_worst_case_pct']} from not sizing "
        f"for the worst case, {document['saving_from_the_split_pct']} from the split",
        f"{_dollars(document['dollars_per_year_saved'])} a year at "
        f"${document['usd_per_gpu_hour']:g} a GPU-hour and "
        f"{document['hours_per_year']:,.0f} h; "
        f"{_dollars(document['dollars_per_year_saved_against_paged'])} of it from "
        "the split",
        document["verdict"],
    ):
        print(wrap(line))
    print(f"seed {document['seed']}, {document['wall_time_s']} s")


def _print_pools(document: dict[str, Any]) -> None:
    columns = (
        ("pool", 8), ("instances", 10), ("max_model_len", 14), ("max_num_seqs", 13),
        ("share", 9), ("used", 7), ("P99 TTFT", 18), ("P99 TPOT", 16),
        ("measured", 10),
    )  # fmt: skip
    print("".join(f"{title:>{width}}" for title, width in columns))
    for pool in document["pools"]:
        cells = (
            pool["name"],
            f"{pool['instances']:,}",
            f"{pool['max_model_len']:,}",
            f"{pool['max_num_seqs']:,}",
            f"{pool['share_of_requests']:.2%}",
            "-" if pool["utilization"] is None else f"{pool['utilization']:.1%}",
            _with_interval(pool, "p99_ttft_s"),
            _with_interval(pool, "p99_tpot_s"),
            f"{pool['requests_measured']:,}{'*' if pool['measured_alone'] else ''}",
        )
        row = zip(cells, columns, strict=True)
        print("".join(f"{cell:>{width}}" for cell, (_, width) in row))
    if any(pool["measured_alone"] for pool in document["pools"]):
        print("* gets too few of the fleet's requests: measured by itself, longer")


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    half = row["half_widths"][key]
    text = _seconds(row[key])
    return text if half is None else f"{text} +- {_seconds(half)}"


def _print_policies(document: dict[str, Any]) -> None:
    print(
        f"{'':23} {'':>9} {'saved by':>9} {'P99':>7} {'P99':>6} {'re-':>7} {'cut':>7}\n"
        f"{'policy':23} {'instances':>9} {'the split':>9} {'TTFT':>7} {'TPOT':>6} "
        f"{'jected':>7} {'off':>7}  SLO"
    )
    rows = {"split": None, **document["baselines"]}
    for name, row in rows.items():
        if row is None:
            met = "met" if document["slo_met"] else "missed"
            print(f"{name:23} {document['instances']:9} {'':9} {'':30}  {met}")
            continue
        print(
            f"{name:23} {row['instances']:9} {row['saving_pct']:8.1f}% "
            f"{_seconds(row['p99_ttft_s']):>7} {_seconds(row['p99_tpot_s']):>6} "
            f"{row['rejected_share']:7.3%} {row['truncated_share']:7.3%}  "
            f"{'met' if row['slo_met'] else 'missed'}"
        )


def _dollars(amount: float) -> str:
    return f"{'-' if amount < 0 else ''}${abs(amount):,}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"
