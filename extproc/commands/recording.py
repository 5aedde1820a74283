"""What a recording of the server's own decisions (``recording.file``) tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from extproc.exchange.events import Observation
from extproc.exchange.record import read_record
from extproc.routing.evaluation import Evaluation


class RecordingError(Exception):
    """A line that is not of a recording; names the line and what is accepted."""


def is_recording(line: bytes) -> bool:
    """Whether a line of a log is of a recording, rather than of requests."""
    try:
        record = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "decision" in record and "body" not in record


def read_recording(lines: Iterable[bytes]) -> Iterator[Observation]:
    """Read the observations of a recording.

    Raises:
        RecordingError: a line that is not one.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield read_record(msgspec.json.decode(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordingError(
                f"line {number}: {type(error).__name__}; accepted: a line that "
                "recording.file got from the server"
            ) from None


def score_recording(
    observations: Iterable[Observation], thresholds: Sequence[int]
) -> dict[str, Any]:
    """Score the decisions as they were made, at several thresholds.

    Only 200s with usage are scored; ``pools`` holds where all of them would have gone
    (in shadow mode), or went.
    """
    evaluation = Evaluation(thresholds)
    pools: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    total = 0
    for observation in observations:
        decision, outcome = observation.decision, observation.outcome
        total += 1
        pools[decision.pool.name] += 1
        counted = outcome.prompt_tokens
        if outcome.status != 200 or not counted:
            continue
        completion = outcome.completion_tokens or 0
        tokens[decision.pool.name] += counted + completion
        if not decision.reason.failed_open:
            evaluation.add(decision, counted, completion)
    return {
        "requests": total,
        "pools": {
            name: {"requests": pools[name], "tokens": tokens[name]}
            for name in sorted(pools)
        },
        **evaluation.report(),
    }


def render_recording(report: dict[str, Any]) -> Iterator[str]:
    """Lay the scores out for people, a line at a time."""
    yield f"{report['requests']} requests recorded, {report['scored']} scored"
    requests = max(1, report["requests"])
    total_tokens = max(1, sum(pool["tokens"] for pool in report["pools"].values()))
    yield f"\n{'pool':>14} {'requests':>9} {'share %':>8} {'tokens %':>9}"
    for name, pool in report["pools"].items():
        share = 100 * pool["requests"] / requests
        tokens = 100 * pool["tokens"] / total_tokens
        yield f"{name:>14} {pool['requests']:>9} {share:>8.2f} {tokens:>9.2f}"
    yield (
        f"\nprompt estimate: MAPE {report['mape_pct']} %, bias "
        f"{report['bias_pct']:+} %, above its bound "
        f"{100 * report['under_estimate_rate']:.2f} %"
    )
    yield f"\n{'threshold':>14} {'under %':>9} {'over %':>8}"
    for threshold, routed in report["misroute_pct"].items():
        yield f"{threshold:>14} {routed['under']:>9} {routed['over']:>8}"
    yield f"\n{'category':>14} {'requests':>9} {'MAPE %':>8} {'bias %':>9}"
    for category, scores in report["by_category"].items():
        yield (
            f"{category:>14} {scores['requests']:>9} {scores['mape_pct']:>8} "
            f"{scores['bias_pct']:>+9}"
        )
