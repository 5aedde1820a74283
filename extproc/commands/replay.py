"""Run a log of requests through the live code: errors, misroutes, by category.

Lines of {"path": ..., "body": "<the raw JSON body>", "headers": {..}?,
"usage": {"prompt_tokens": n, "completion_tokens": m}}. Each request is estimated
first and learned from afterwards; the first 10 % are not scored. A request counts as
misrouted at a threshold if the decision does not agree with what it needed: its
prompt tokens plus its declared limit, or plus its completion tokens where it declared
none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from extproc.commands.check_config import read_config
from extproc.config import Config, EstimatorName
from extproc.exchange.openai import parse_request
from extproc.routing.evaluation import DEFAULT_THRESHOLDS, Evaluation
from extproc.routing.policy import Reason
from extproc.routing.router import Decision, Outcome, Router
from extproc.server.assembly import build_router, build_sampler

UNSCORED_SHARE = 0.1


class LogError(Exception):
    """A line that is not a log entry; names the line and what is accepted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log."""

    path: str
    body: bytes
    hint: str | None
    prompt_tokens: int
    completion_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("log", metavar="LOG.jsonl", help="- for standard input")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument(
        "--estimator",
        choices=[str(name) for name in EstimatorName],
        metavar="NAME",
        help=f"one of {', '.join(EstimatorName)}; default: the configuration's",
    )
    parser.add_argument(
        "--pool-threshold",
        type=int,
        action="append",
        metavar="TOKENS",
        help=f"repeatable; default: {', '.join(map(str, DEFAULT_THRESHOLDS))}",
    )
    parser.add_argument(
        "--sample",
        type=_sample,
        default="all",
        metavar="all|auto|SHARE",
        help="learn from these responses only, as feedback.sample does; default: all",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _sample(text: str) -> float | Literal["auto", "all"]:
    match text:
        case "all" | "auto":
            return text
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(text)
    return share


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    config = read_config(args.config)
    if config is None:
        return 2
    if args.estimator:
        estimator = dataclasses.replace(
            config.estimator, name=EstimatorName(args.estimator)
        )
        config = dataclasses.replace(config, estimator=estimator)
    feedback = dataclasses.replace(config.feedback, sample=args.sample)
    config = dataclasses.replace(config, feedback=feedback)
    try:
        entries = list(read_log(args.log, config.category.header))
    except (OSError, UnicodeError, LogError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"extproc: {args.log}: {reason}", file=sys.stderr)
        return 2
    report = replay(entries, config, args.pool_threshold or DEFAULT_THRESHOLDS)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def read_log(name: str, hint_header: str) -> Iterator[Entry]:
    """Read a log's entries.

    Raises:
        LogError: a line that is not an entry.
        OSError: the file cannot be read.
    """
    lines: Iterable[bytes]
    if name == "-":
        lines = sys.stdin.buffer
        yield from _read_lines(lines, hint_header)
        return
    with Path(name).open("rb") as lines:
        yield from _read_lines(lines, hint_header)


def _read_lines(lines: Iterable[bytes], hint_header: str) -> Iterator[Entry]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _entry(msgspec.json.decode(line), hint_header)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise LogError(
                f"line {number}: {error!r}; accepted: an object with path, body (text) "
                "and usage.prompt_tokens"
            ) from None


def _entry(record: dict[str, Any], hint_header: str) -> Entry:
    usage = record["usage"]
    headers = {k.lower(): v for k, v in (record.get("headers") or {}).items()}
    return Entry(
        path=record.get("path", "/v1/chat/completions"),
        body=record["body"].encode(),
        hint=headers.get(hint_header),
        prompt_tokens=int(usage["prompt_tokens"]),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )


def replay(
    entries: list[Entry], config: Config, thresholds: Iterable[int]
) -> dict[str, Any]:
    """Estimate, then learn, entry by entry; score all but the first tenth."""
    router = build_router(config)
    evaluation = Evaluation(tuple(thresholds))
    sampler = build_sampler(config.feedback)
    unscored = int(len(entries) * UNSCORED_SHARE)
    observed = 0
    for position, entry in enumerate(entries):
        decision = _decide(router, entry)
        if position >= unscored and entry.prompt_tokens > 0:
            evaluation.add(decision, entry.prompt_tokens, entry.completion_tokens)
        if not sampler.wants(decision):
            continue
        observed += position >= unscored
        outcome = Outcome(200, entry.prompt_tokens, entry.completion_tokens)
        lesson = router.learn(decision, outcome)
        if lesson.error_ratio is not None:
            sampler.observed(decision, lesson.error_ratio)
    return {
        "requests": len(entries),
        "estimator": router.estimator.name,
        "observed_pct": round(100 * observed / max(1, len(entries) - unscored), 2),
        **evaluation.report(),
        "bytes_per_token": {
            category: round(ratio, 3)
            for category, ratio in sorted(router.ratios.all().items())
        },
    }


def _decide(router: Router, entry: Entry) -> Decision:
    request = parse_request(entry.path, entry.body)
    if request is None:
        return router.fail_open(Reason.UNPARSABLE, len(entry.body))
    return router.route(request, entry.hint)


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['requests']} requests, {report['scored']} scored, "
        f"estimator {report['estimator']}"
    )
    print(
        f"prompt estimate: MAPE {report['mape_pct']} %, bias {report['bias_pct']:+} %, "
        f"above its bound {100 * report['under_estimate_rate']:.2f} %"
    )
    print(f"\n{'misroutes, %':>14} {'under':>7} {'over':>7}   {'point':>7}")
    for threshold, routed in report["misroute_pct"].items():
        point = report["misroute_point_pct"][threshold]
        both = point["under"] + point["over"]
        print(
            f"{threshold:>14} {routed['under']:>7} {routed['over']:>7}   {both:>7.2f}"
        )
    print(
        f"\n{'category':>14} {'requests':>9} {'MAPE %':>8} {'bias %':>8} {'B/token':>8}"
    )
    for category, scores in report["by_category"].items():
        ratio = report["bytes_per_token"].get(category, "")
        print(
            f"{category:>14} {scores['requests']:>9} {scores['mape_pct']:>8} "
            f"{scores['bias_pct']:>+8} {ratio:>8}"
        )
