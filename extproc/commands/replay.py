"""Replay a log of requests through the router: estimation errors and misroutes.

Lines of {"path": ..., "body": ..., "headers": {..}?, "usage": {"prompt_tokens": n,
"completion_tokens": m}}. The body is JSON as text or as an object; "body_base64"
contains the bytes on the wire, to which the content-encoding header applies. OpenAI's
batch lines ("url"), LiteLLM's logs and Langfuse's exports are accepted too, if they
contain bodies. Bodies are parsed as the server does, up to `server.max_body_bytes`.
Each request is estimated first and learned from afterwards; the first 10 % are not
scored. A request counts as misrouted at a threshold if the decision differs from its
actual need: its prompt tokens plus its declared limit, or plus its completion tokens if
it declares none.

A recording of the server (`recording.file`) is scored with its original decisions: with
`mode: shadow`, this shows their effect on the fleet. It contains the observed
responses: all of them with `feedback.sample: all` or `feedback.access_log`, else a
sample that is denser at first and near a pool's limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from extproc.commands.check_config import read_config
from extproc.commands.recording_report import (
    Recorded,
    RecordingError,
    is_recording,
    read_recording,
    render_recording,
    score_models,
    score_recording,
)
from extproc.commands.request_log import BOM, Entry, LogError, read_log
from extproc.commands.text import positive
from extproc.config import Config, EstimatorName
from extproc.exchange.body_parser import parse_request
from extproc.exchange.events import NotRouted
from extproc.routing.evaluation import DEFAULT_THRESHOLDS, Evaluation
from extproc.routing.models import AnyRouter
from extproc.routing.policy import Reason
from extproc.routing.prior import FAMILIES
from extproc.routing.router import Decision, Outcome
from extproc.server.build import build_router, build_sampler

UNSCORED_SHARE = 0.1

COLD_REQUESTS = 50
"""Number of initial requests that are scored as a cold start."""

BASELINES = (
    EstimatorName.EMA,
    EstimatorName.BYTES_OVER_FOUR,
    EstimatorName.SEMANTIC_ROUTER,
)
"""Estimators that the report compares with the chosen estimator."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "log", metavar="LOG.jsonl", help="log of requests; - reads standard input"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration of the router"
    )
    parser.add_argument(
        "--estimator",
        choices=[str(name) for name in EstimatorName],
        metavar="NAME",
        help=f"one of {', '.join(EstimatorName)} (default: the configuration's)",
    )
    parser.add_argument(
        "--pool-threshold",
        type=positive,
        action="append",
        metavar="TOKENS",
        help="threshold to score; repeat for several (default: "
        f"{', '.join(map(str, DEFAULT_THRESHOLDS))})",
    )
    parser.add_argument(
        "--sample",
        type=_sample,
        default="all",
        metavar="all|auto|SHARE",
        help="responses to learn from, as in feedback.sample (default: %(default)s)",
    )
    parser.add_argument(
        "--cold",
        choices=FAMILIES,
        metavar="FAMILY",
        help="tokenizer family to exclude from the text estimator's prior; scores the "
        f"first {COLD_REQUESTS} requests too: {', '.join(FAMILIES)}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _sample(text: str) -> float | Literal["auto", "all"]:
    match text:
        case "all" | "auto":
            return text
    with suppress(ValueError):
        share = float(text)
        if 0 <= share <= 1:
            return share
    raise argparse.ArgumentTypeError(f"{text}; expected all, auto or 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    config = read_config(args.config)
    if config is None:
        return 2
    if args.estimator:
        config = _with_estimator(config, EstimatorName(args.estimator))
    feedback = dataclasses.replace(config.feedback, sample=args.sample)
    config = dataclasses.replace(config, feedback=feedback)
    try:
        recorded = _score_if_recorded(args)
        if recorded is not None:
            return recorded
        entries = list(read_log(args.log, config.category.header))
    except (OSError, UnicodeError, LogError, RecordingError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"extproc: {args.log}: {reason}", file=sys.stderr)
        return 2
    thresholds = args.pool_threshold or DEFAULT_THRESHOLDS
    report = replay(entries, config, thresholds, [args.cold] if args.cold else ())
    report["baselines"] = _baselines(entries, config, thresholds)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _score_if_recorded(args: argparse.Namespace) -> int | None:
    if args.log == "-":
        return None
    with Path(args.log).open("rb") as lines:
        first = next((line for line in lines if line.strip(BOM + b" \r\n\t")), b"")
        if not is_recording(first.removeprefix(BOM)):
            return None

        def read() -> Iterator[Recorded]:
            lines.seek(0)
            return read_recording(lines)

        thresholds = args.pool_threshold or DEFAULT_THRESHOLDS
        models = score_models(read, thresholds)
        if not models:
            models = {"": score_recording(read, thresholds)}
    if args.json:
        print(json.dumps(models.get("") or {"models": models}))
    else:
        print("\n\n".join(_render_model(models, name, args.log) for name in models))
    return 0


def _render_model(models: Mapping[str, dict[str, Any]], name: str, log: str) -> str:
    return "\n".join(render_recording(models[name], log, name))


def replay(
    entries: Sequence[Entry],
    config: Config,
    thresholds: Sequence[int],
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """For each entry, estimate and then learn; score all but the first tenth."""
    router = build_router(config, leave_out)
    sampler = build_sampler(config.feedback, router)
    evaluation = Evaluation(thresholds)
    by_model: dict[str, Evaluation] = {}
    cold = Evaluation(thresholds)
    unscored = int(len(entries) * UNSCORED_SHARE)
    observed = 0
    reasons: Counter[str] = Counter()
    for position, entry in enumerate(entries):
        decision = _decide(router, entry, config.server.max_body_bytes)
        if decision is None:
            reasons[NotRouted.UNKNOWN_MODEL] += 1
            continue
        reasons[str(decision.reason)] += 1
        outcome = Outcome(200, entry.prompt_tokens, entry.completion_tokens)
        if position >= unscored:
            evaluation.add(decision, outcome)
            if decision.base_model:
                of_model = by_model.setdefault(
                    decision.base_model, Evaluation(thresholds)
                )
                of_model.add(decision, outcome)
        if position < COLD_REQUESTS:
            cold.add(decision, outcome)
        if not sampler.wants(decision):
            continue
        observed += position >= unscored
        lesson = router.learn(decision, outcome)
        if lesson.error_ratio is not None:
            sampler.observed(decision, lesson.error_ratio)
    return {
        "requests": len(entries),
        "reasons": dict(reasons.most_common()),
        "estimator": router.estimator.name,
        "observed_pct": round(100 * observed / max(1, len(entries) - unscored), 2),
        **evaluation.report(),
        **_report_models(by_model),
        "first_requests": {
            key: cold.report()[key] for key in ("scored", "mape_pct", "bias_pct")
        },
        "bytes_per_token": {
            category: round(ratio, 3)
            for category, ratio in sorted(router.ratios.all().items())
        },
    }


def _report_models(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the scores of each base model, if models are configured."""
    keys = ("scored", "mape_pct", "bias_pct", "under_estimate_rate", "misroute_pct")
    models = {
        name: {key: evaluation.report()[key] for key in keys}
        for name, evaluation in sorted(evaluations.items())
    }
    return {"models": models} if models else {}


def _with_estimator(config: Config, name: EstimatorName) -> Config:
    estimator = dataclasses.replace(config.estimator, name=name)
    return dataclasses.replace(config, estimator=estimator)


def _baselines(
    entries: Sequence[Entry], config: Config, thresholds: Sequence[int]
) -> dict[str, Any]:
    keys = ("mape_pct", "bias_pct", "under_estimate_rate", "misroute_pct")
    scores = {}
    for name in BASELINES:
        if name is not config.estimator.name:
            report = replay(entries, _with_estimator(config, name), thresholds)
            scores[str(name)] = {key: report[key] for key in keys}
    return scores


def _decide(router: AnyRouter, entry: Entry, max_body_bytes: int) -> Decision | None:
    """Return the decision, or None if the request's model is not configured."""
    request = parse_request(entry.path, entry.body, entry.encoding, max_body_bytes)
    found = router.find("" if isinstance(request, Reason) else request.model)
    if found is None:
        return None
    if isinstance(request, Reason):
        return found.fail_open(request, len(entry.body))
    return found.route(request, entry.hint)


def _print_models(models: Mapping[str, Any]) -> None:
    if not models:
        return
    columns = f"{'scored':>7} {'MAPE %':>7} {'bias %':>8} {'> bound %':>10}"
    print(f"\n{'model':>18} {columns}")
    for name, scores in models.items():
        above = 100 * scores["under_estimate_rate"]
        print(
            f"{name:>18} {scores['scored']:>7} {scores['mape_pct']:>7} "
            f"{scores['bias_pct']:>+8} {above:>10.2f}"
        )


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['requests']} requests, {report['scored']} scored; learned from "
        f"{report['observed_pct']:g} % of them"
    )
    for reason in Reason:
        if reason.failed_open and reason in report["reasons"]:
            count = report["reasons"][reason]
            print(f"{count} not read: {reason.replace('_', ' ')}")
    first = report["first_requests"]
    print(
        f"first {first['scored']} requests, nothing learned: {first['mape_pct']} % off"
    )
    largest = list(report["misroute_pct"])[-1]
    print(
        f"\n{'prompt estimate by':>18} {'MAPE %':>7} {'bias %':>8} {'> bound %':>10} "
        f"{'misrouted at ' + largest + ', %: under':>27} {'over':>5}"
    )
    for name, scores in {report["estimator"]: report, **report["baselines"]}.items():
        routed = scores["misroute_pct"][largest]
        print(
            f"{name:>18} {scores['mape_pct']:>7} {scores['bias_pct']:>+8} "
            f"{100 * scores['under_estimate_rate']:>10.2f} {routed['under']:>27} "
            f"{routed['over']:>5}"
        )
    _print_models(report.get("models", {}))
    print(f"\n{'threshold':>18} {'under %':>8} {'over %':>8} {'by the point, %':>16}")
    for threshold, routed in report["misroute_pct"].items():
        point = report["misroute_point_pct"][threshold]
        both = point["under"] + point["over"]
        print(f"{threshold:>18} {routed['under']:>8} {routed['over']:>8} {both:>16.2f}")
    print(
        f"\n{'category':>18} {'MAPE %':>8} {'bias %':>8} {'requests':>10} "
        f"{'bytes/token':>12}"
    )
    for category, scores in report["by_category"].items():
        ratio = report["bytes_per_token"].get(category, "")
        print(
            f"{category:>18} {scores['mape_pct']:>8} {scores['bias_pct']:>+8} "
            f"{scores['requests']:>10} {ratio:>12}"
        )
