"""The demo's results: estimates and routes compared with the backends' token counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

from msgspec.structs import replace

from extproc.config import Config
from extproc.demo.client import Reply
from extproc.demo.stack.access_log import Record
from extproc.exchange.body_parser import parse_request
from extproc.routing.decision import Decision, Outcome
from extproc.routing.misroute import Misroute, find_misroute, needed_tokens
from extproc.routing.policy import Policy, Reason
from extproc.routing.ratio import DEFAULT_BYTES_PER_TOKEN, template_tokens
from extproc.routing.request import Request
from extproc.server.build import build_policy, build_router

_FAILURES_TOLD = 5


class Estimate(Enum):
    """The source of an estimate of the prompt tokens."""

    RULE_OF_THUMB = "bytes / 4"
    COLD = "nothing learned"
    ROUTED = "as routed"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: its reply, Envoy's record of it, and a cold router's decision.

    ``cold`` is the decision that the same code makes about the same bytes before it has
    learned anything; None if the body cannot be read.
    """

    reply: Reply
    record: Record | None
    cold: Decision | None

    @property
    def category(self) -> str:
        """The router's category for the request; ``-`` without a decision."""
        return (self.record and self.record.category) or "-"

    def estimate(self, whose: Estimate) -> int | None:
        """Return an estimate of the prompt tokens, or None."""
        match whose:
            case Estimate.ROUTED:
                return self.record.prompt_tokens if self.record else None
            case Estimate.COLD:
                return self.cold.prompt_tokens if self.cold else None
            case Estimate.RULE_OF_THUMB:
                return len(self.reply.request.body) // 4

    @property
    def comparable(self) -> bool:
        """Whether both the estimate and the count of the prompt tokens are known."""
        return bool(
            self.reply.prompt_tokens
            and self.record
            and self.record.prompt_tokens
            and self.cold
            and self.cold.features
        )


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute errors over the same requests, in percent of the counted tokens."""

    bytes_over_four_pct: float | None = None
    before_pct: float | None = None
    """Error of the router with nothing learned."""
    after_pct: float | None = None
    """Error of the router when it routed these requests."""


@dataclass(frozen=True, slots=True)
class OverflowCheck:
    """A prompt too long for the short pool, sent there on purpose."""

    prompt_tokens: int | None
    status: int
    attempts: int
    answered_by: str


@dataclass(slots=True)
class Row:
    """One category of the table. Errors are mean absolute percentages."""

    category: str
    requests: int = 0
    pools: Counter[str] = field(default_factory=Counter)
    overflows: int = 0
    errors: Errors = Errors()
    learned_bytes_per_token: float | None = None
    true_bytes_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that the router adds to a small request, by percentile."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of the additional measurements; None if not measured."""

    learned_bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    """The router's final bytes per token, by category."""
    latency: Latency | None = None
    overflow: OverflowCheck | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """All results of the demo."""

    requests: int
    failed: list[Reply]
    without_decision: int
    pools: Mapping[str, int]
    answered_by: Mapping[str, int]
    overflow_retries: int
    under: int
    """Number of requests sent to the short pool that needed a longer window."""
    over: int
    """Number of requests sent to the long pool that would have fitted the short one."""
    cold_under: int
    cold_over: int
    judged: int
    compared: int
    """Number of requests in the last half whose errors are averaged."""
    errors: Errors
    rows: list[Row]
    duration_s: float
    measured: Measured

    def as_json(self) -> dict[str, object]:
        """Return all results as one JSON-compatible object."""
        return {
            "requests": self.requests,
            "failed": len(self.failed),
            "failures": [
                {
                    "path": reply.request.path,
                    "status": reply.status,
                    "detail": reply.detail,
                }
                for reply in self.failed[:_FAILURES_TOLD]
            ],
            "without_decision": self.without_decision,
            "pools": dict(self.pools),
            "answered_by": dict(self.answered_by),
            "overflow_retries": self.overflow_retries,
            "misroutes": self.under + self.over,
            "misroutes_by_direction": {"under": self.under, "over": self.over},
            "misroutes_cold": {"under": self.cold_under, "over": self.cold_over},
            "judged": self.judged,
            "compared": self.compared,
            **_errors(self.errors),
            "added_latency_ms": _latency(self.measured.latency),
            "overflow_check": None
            if self.measured.overflow is None
            else asdict(self.measured.overflow),
            "bytes_per_token": {
                row.category: {
                    "start": DEFAULT_BYTES_PER_TOKEN,
                    "learned": _rounded(row.learned_bytes_per_token),
                    "true": _rounded(row.true_bytes_per_token),
                }
                for row in self.rows
                if row.true_bytes_per_token is not None
            },
            "by_category": {
                row.category: {
                    "requests": row.requests,
                    "pools": dict(row.pools),
                    "overflow_retries": row.overflows,
                    **_errors(row.errors),
                }
                for row in self.rows
            },
            "duration_s": _rounded(self.duration_s),
        }


def _errors(errors: Errors) -> dict[str, float | None]:
    return {
        "mape_bytes_over_four_pct": _rounded(errors.bytes_over_four_pct),
        "mape_before_pct": _rounded(errors.before_pct),
        "mape_after_pct": _rounded(errors.after_pct),
    }


def _latency(latency: Latency | None) -> dict[str, float | None] | None:
    if latency is None:
        return None
    return {"p50": _rounded(latency.p50), "p99": _rounded(latency.p99)}


def join(
    config: Config, replies: Sequence[Reply], records: Mapping[str, Record]
) -> list[Sent]:
    """Combine each request's reply, record and cold decision, in sending order."""
    (cold_router,) = build_router(config).routers
    joined = []
    for reply in replies:
        request = parse_request(reply.request.path, reply.request.body)
        hint = reply.request.headers.get(config.category.header)
        cold = None
        if isinstance(request, Request):
            cold = cold_router.route(request, hint)
        joined.append(Sent(reply, records.get(reply.request_id), cold))
    return joined


def judge(
    config: Config, sent: Sequence[Sent], duration_s: float, measured: Measured
) -> Results:
    """Compute the results."""
    after = [each for each in sent[len(sent) // 2 :] if each.comparable]
    policy = build_policy(config.pools)
    directions = Counter(_direction(policy, each, cold=False) for each in sent)
    cold = Counter(_direction(policy, each, cold=True) for each in sent)
    records = [each.record for each in sent if each.record is not None]
    return Results(
        requests=len(sent),
        failed=[each.reply for each in sent if each.reply.failed],
        without_decision=sum(1 for each in records if each.pool is None),
        pools=_sorted(Counter(each.pool or "-" for each in records)),
        answered_by=_sorted(
            Counter(each.cluster.removeprefix("vllm_") for each in records)
        ),
        overflow_retries=sum(1 for each in records if each.attempts > 1),
        under=directions["under"],
        over=directions["over"],
        cold_under=cold["under"],
        cold_over=cold["over"],
        judged=len(sent) - directions[None],
        compared=len(after),
        errors=_compare(after),
        rows=_rows(sent, after, measured.learned_bytes_per_token),
        duration_s=duration_s,
        measured=measured,
    )


def _rows(
    sent: Sequence[Sent], after: Sequence[Sent], learned: Mapping[str, float]
) -> list[Row]:
    rows = []
    for category in sorted({each.category for each in sent}):
        mine = [each for each in sent if each.category == category]
        compared = [each for each in after if each.category == category]
        records = [each.record for each in mine if each.record is not None]
        rows.append(
            Row(
                category=category,
                requests=len(mine),
                pools=Counter(each.pool or "-" for each in records),
                overflows=sum(1 for each in records if each.attempts > 1),
                errors=_compare(compared),
                learned_bytes_per_token=learned.get(category),
                true_bytes_per_token=_true_ratio(mine),
            )
        )
    return rows


def _compare(sent: Sequence[Sent]) -> Errors:
    return Errors(
        bytes_over_four_pct=_mape(sent, Estimate.RULE_OF_THUMB),
        before_pct=_mape(sent, Estimate.COLD),
        after_pct=_mape(sent, Estimate.ROUTED),
    )


def _mape(sent: Sequence[Sent], whose: Estimate) -> float | None:
    errors = []
    for each in sent:
        estimate, counted = each.estimate(whose), each.reply.prompt_tokens
        if estimate is not None and counted:
            errors.append(abs(estimate - counted) / counted)
    return 100 * sum(errors) / len(errors) if errors else None


def _true_ratio(sent: Sequence[Sent]) -> float | None:
    """Return the bytes of text per counted token, calculated as in the router."""
    text_bytes = text_tokens = 0
    for each in sent:
        if each.cold and each.cold.features and each.reply.prompt_tokens:
            features = each.cold.features
            text_bytes += features.text_bytes + features.tools_bytes
            text_tokens += max(1, each.reply.prompt_tokens - template_tokens(features))
    return text_bytes / text_tokens if text_tokens else None


def _direction(policy: Policy, sent: Sent, *, cold: bool) -> str | None:
    """Return ``under``, ``over`` or ``right``, or None if unknown.

    Args:
        policy: the pools.
        sent: a request.
        cold: whether to judge the cold router's decision instead of the actual one.
    """
    decision, reply = sent.cold, sent.reply
    if decision is None or not reply.prompt_tokens:
        return None
    attempts = 1
    if not cold:
        record = sent.record
        pool = policy.pool(record.pool or "") if record else None
        if record is None or pool is None:
            return None
        reason = Reason(record.reason) if record.reason else decision.reason
        decision = replace(decision, pool=pool, reason=reason)
        attempts = record.attempts
    outcome = Outcome(
        reply.status,
        reply.prompt_tokens,
        reply.completion_tokens,
        reply.truncated,
        attempts,
    )
    if needed_tokens(decision, outcome) is None:
        return None
    misroute = find_misroute(policy, decision, outcome)
    return "right" if misroute is None else _DIRECTIONS[misroute]


_DIRECTIONS = {
    Misroute.SHORT_OVERFLOW: "under",
    Misroute.TRUNCATED: "under",
    Misroute.LONG_WASTE: "over",
}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def added_latency(with_s: Sequence[float], without_s: Sequence[float]) -> Latency:
    """Return the differences between the percentiles of two sets of times, in ms.

    A negative difference is noise, and 0 is returned for it.
    """
    p50, p99 = (
        1000 * max(0.0, percentile(with_s, share) - percentile(without_s, share))
        for share in (0.5, 0.99)
    )
    return Latency(p50, p99)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
