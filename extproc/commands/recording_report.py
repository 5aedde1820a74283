"""Evaluates a recording of the server's own decisions (``recording.file``).

In shadow mode, the report predicts the router's effect on a fleet before any request
goes to another pool.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import msgspec

from extproc.commands.text import wrap
from extproc.exchange.events import Observation
from extproc.exchange.observation_line import read_line
from extproc.routing.advice import BudgetCounts, advise, budget_counts
from extproc.routing.evaluation import Evaluation
from extproc.routing.misroute import Misroute, find_misroute
from extproc.routing.policy import Policy, Pool


class RecordingError(Exception):
    """An invalid line in a recording; the message has line number and expected form."""


def is_recording(line: bytes) -> bool:
    """Return whether a line is from a recording, rather than from a request log."""
    try:
        record = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "decision" in record and "body" not in record


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a recording: an observation and its time."""

    time_s: float
    """Time in seconds since 1970."""
    observation: Observation


def read_recording(lines: Iterable[bytes]) -> Iterator[Recorded]:
    """Read a recording.

    Raises:
        RecordingError: an invalid line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            recorded = read_line(line)
        except ValueError as error:
            raise RecordingError(
                f"line {number}: {error}; expected a line that the server wrote to "
                "recording.file"
            ) from None
        yield Recorded(recorded.time, recorded.observation)


def of_model(recording: Iterable[Recorded], model: str) -> Iterator[Recorded]:
    """Yield the lines of a recording that belong to one base model."""
    return (r for r in recording if r.observation.decision.base_model == model)


def models_of(recording: Iterable[Recorded]) -> list[str]:
    """Return the base models in a recording; empty if the pools serve one model."""
    names = {line.observation.decision.base_model for line in recording}
    return sorted(names - {""})


def score_models(
    read: Callable[[], Iterable[Recorded]], thresholds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Evaluate the decisions of each base model as ``score_recording`` does.

    Args:
        read: function that opens the recording at its start.
    """
    return {
        model: score_recording(partial(_read_model, read, model), thresholds)
        for model in models_of(read())
    }


def _read_model(
    read: Callable[[], Iterable[Recorded]], model: str
) -> Iterator[Recorded]:
    return of_model(read(), model)


def score_recording(
    read: Callable[[], Iterable[Recorded]], thresholds: Sequence[int]
) -> dict[str, Any]:
    """Evaluate the recorded decisions, and the decisions at several other thresholds.

    Only requests whose response has status 200 and usage are scored. ``pools`` contains
    for each pool the number of requests that it received (or would receive, in shadow
    mode), and the numbers of scored requests that needed a larger pool or fitted a
    smaller pool.

    Args:
        read: function that opens the recording, called twice so that no lines are kept
            in memory.
    """
    survey = _survey(read())
    policy = survey.policy()
    counts = budget_counts(policy) if policy else BudgetCounts([])
    evaluation = Evaluation(thresholds)
    reasons: Counter[str] = Counter()
    tallies = {name: _PoolCounts() for name in survey.pools}
    for line in read():
        decision, outcome = line.observation.decision, line.observation.outcome
        reasons[str(decision.reason)] += 1
        tally = tallies[decision.pool.name]
        tally.requests += 1
        if outcome.status == 200:
            tally.tokens += outcome.prompt_tokens or 0
            tally.tokens += outcome.completion_tokens or 0
        counts.decided(decision)
        counts.observed(decision, outcome)
        evaluation.add(decision, outcome)
        misroute = find_misroute(policy or Policy([decision.pool]), decision, outcome)
        tally.too_small += misroute in _NEEDED_LARGER
        tally.too_large += misroute is Misroute.LONG_WASTE
    return {
        "requests": sum(reasons.values()),
        "seconds": round(survey.last_s - survey.first_s, 3) if survey.pools else 0.0,
        "pools": {name: asdict(tally) for name, tally in tallies.items()},
        "reasons": dict(reasons.most_common()),
        **evaluation.report(),
        "advice": _advice(policy, counts),
    }


_NEEDED_LARGER = (Misroute.SHORT_OVERFLOW, Misroute.TRUNCATED)


@dataclass(slots=True)
class _PoolCounts:
    requests: int = 0
    tokens: int = 0
    too_small: int = 0
    """Number of scored requests that needed a larger pool."""
    too_large: int = 0
    """Number of scored requests that fitted a smaller pool."""


@dataclass(frozen=True, slots=True)
class _Survey:
    pools: Mapping[str, Pool]
    """Pools by name, in increasing order of window. If a limit changed, its last value
    is used."""
    first_s: float
    last_s: float

    def policy(self) -> Policy | None:
        """Return a policy with one pool for each window, or None without pools."""
        by_window = {pool.max_model_len: pool for pool in self.pools.values()}
        return Policy(list(by_window.values())) if by_window else None


def _survey(recording: Iterable[Recorded]) -> _Survey:
    pools: dict[str, Pool] = {}
    first_s, last_s = math.inf, -math.inf
    for line in recording:
        pool = line.observation.decision.pool
        pools[pool.name] = pool
        first_s, last_s = min(first_s, line.time_s), max(last_s, line.time_s)
    ordered = sorted(pools.values(), key=lambda pool: pool.max_model_len)
    return _Survey({pool.name: pool for pool in ordered}, first_s, last_s)


def _advice(policy: Policy | None, counts: BudgetCounts) -> dict[str, Any] | None:
    found = advise(counts, policy) if policy else None
    return None if found is None else asdict(found)


def render_recording(
    report: dict[str, Any], name: str, model: str = ""
) -> Iterator[str]:
    """Format the scores as text, line by line.

    Args:
        report: the result of ``score_recording``.
        name: the recording's file name, for the command that the text suggests.
        model: the report's base model, if there are several.
    """
    if model:
        yield f"{model}:"
    requests = max(1, report["requests"])
    rate = requests / report["seconds"] if report["seconds"] else None
    pace = f" in {report['seconds']:,.0f} s, {rate:.3g} a second" if rate else ""
    yield f"{report['requests']:,} requests recorded{pace}; {report['scored']:,} scored"
    yield from _render_pools(report, requests)
    reasons = (
        f"{reason.replace('_', ' ')} {100 * count / requests:.2f} %"
        for reason, count in report["reasons"].items()
    )
    yield "\n" + wrap(f"decided: {', '.join(reasons)}")
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
    if report["advice"]:
        yield "\n" + wrap(_describe_advice(report["advice"]))
    if rate and report["scored"]:
        yield "\nTo size it with hardware and SLOs, and compare it with one pool:"
        served = f" --served-model {model}" if model else ""
        yield f"  extproc plan --workload {name}{served} --rate {rate:.3g}"


def _render_pools(report: Mapping[str, Any], requests: int) -> Iterator[str]:
    tokens = max(1, sum(pool["tokens"] for pool in report["pools"].values()))
    yield f"\n{'':>14} {'':>9} {'':>8} {'':>9} {'needed a':>10} {'fit a':>10}"
    yield (
        f"{'pool':>14} {'requests':>9} {'share %':>8} {'tokens %':>9} "
        f"{'larger one':>10} {'smaller':>10}"
    )
    for name, pool in report["pools"].items():
        share = 100 * pool["requests"] / requests
        yield (
            f"{name:>14} {pool['requests']:>9} {share:>8.2f} "
            f"{100 * pool['tokens'] / tokens:>9.2f} {pool['too_small']:>10} "
            f"{pool['too_large']:>10}"
        )


def _describe_advice(advice: Mapping[str, Any]) -> str:
    def describe(prospect: Mapping[str, Any]) -> str:
        return (
            f"{100 * prospect['short_fraction']:.1f} % of the requests, "
            f"{100 * prospect['saving']:.1f} % of one pool's instances saved (at most "
            f"{100 * prospect['saving_at_most']:.1f} %)"
        )

    current, best = advice["current"], advice["best"]
    text = (
        f"With the papers' formula and constants, a short pool of "
        f"{current['threshold_tokens']:,}: {describe(current)}."
    )
    if best["threshold_tokens"] != current["threshold_tokens"]:
        text += f" The best is {best['threshold_tokens']:,}: {describe(best)}."
    return text
