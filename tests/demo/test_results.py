import io
import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.config import Config, PoolConfig
from extproc.demo.client import Reply
from extproc.demo.report import ProgressBar, as_text
from extproc.demo.results import (
    Errors,
    Measured,
    OverflowCheck,
    Results,
    added_latency,
    join,
    judge,
    percentile,
)
from extproc.demo.stack.access_log import Record
from extproc.demo.workload import DemoRequest
from extproc.exchange.body_parser import parse_request
from extproc.routing.request import Request

from ..server.in_force import make_router

CONFIG = Config(pools=(PoolConfig("short", 100), PoolConfig("long", 1000)))


def exchange(
    number: int,
    *,
    text: str = "Hello there, how are you today?",
    max_tokens: int | None = 10,
    pool: str | None = "short",
    attempts: int = 1,
    estimate: int = 20,
    counted: int | None = 10,
    completion: int | None = 10,
    status: int = 200,
) -> tuple[Reply, Record]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    request = DemoRequest("/v1/chat/completions", json.dumps(body).encode(), "prose")
    identity = str(number)
    reply = Reply(identity, request, status, counted, completion, False, 0.1)
    cluster = "vllm_long" if attempts > 1 or pool != "short" else "vllm_short"
    record = Record(
        identity,
        status,
        pool,
        cluster,
        attempts,
        9.0,
        "prose" if pool else None,
        None,
        estimate if pool else None,
        None,
    )
    return reply, record


def judged(
    *exchanges: tuple[Reply, Record], learned: dict[str, float] | None = None
) -> Results:
    replies = [reply for reply, _ in exchanges]
    records = {record.request_id: record for _, record in exchanges}
    return judge(CONFIG, join(CONFIG, replies, records), 1.0, Measured(learned or {}))


def test_requests_are_counted_by_decision_and_by_who_answered() -> None:
    results = judged(
        exchange(1),
        exchange(2, attempts=2),
        exchange(3, pool="long"),
        exchange(4, pool=None),
    )
    assert results.pools == {"short": 2, "long": 1, "-": 1}
    assert results.answered_by == {"short": 1, "long": 3}
    assert results.overflow_retries == 1
    assert results.without_decision == 1


@pytest.mark.parametrize(
    ("pool", "counted", "max_tokens", "completion", "direction"),
    [
        ("short", 90, 10, 1, None),
        ("short", 91, 10, 1, "under"),
        ("short", 90, None, 11, "under"),
        ("short", 90, None, 10, None),
        ("long", 90, 10, 1, "over"),
        ("long", 91, 10, 1, None),
        ("long", 2000, 10, 1, None),
    ],
)
def test_a_misroute_is_judged_by_what_was_needed(
    pool: str,
    counted: int,
    max_tokens: int | None,
    completion: int,
    direction: str | None,
) -> None:
    results = judged(
        exchange(
            1, pool=pool, counted=counted, max_tokens=max_tokens, completion=completion
        )
    )
    assert results.judged == 1
    assert (results.under, results.over) == (direction == "under", direction == "over")


def test_what_has_no_count_is_not_judged() -> None:
    results = judged(exchange(1, counted=None), exchange(2, pool=None))
    assert (results.judged, results.under, results.over, results.compared) == (
        0,
        0,
        0,
        0,
    )
    assert results.errors == Errors()


def test_errors_are_of_the_last_half() -> None:
    results = judged(
        *(exchange(n, estimate=99) for n in range(4)),
        *(exchange(n + 4, estimate=12) for n in range(4)),
    )
    assert results.compared == 4
    assert results.errors.after_pct == pytest.approx(20)
    # A cold router counts 8 tokens for the template, plus 31 bytes at 4.0 bytes per
    # token. The correct count is 10 tokens.
    body = exchange(1)[0].request.body
    assert results.errors.bytes_over_four_pct == pytest.approx(
        10 * (len(body) // 4 - 10)
    )
    request = parse_request("/v1/chat/completions", body)
    assert isinstance(request, Request)
    cold = make_router(CONFIG).route(request)
    assert results.errors.before_pct == pytest.approx(10 * abs(cold.prompt_tokens - 10))


def test_the_true_ratio_is_over_all_requests() -> None:
    text = "x" * 400
    results = judged(
        exchange(1, text=text, counted=108),
        exchange(2, text=text, counted=208),
        learned={"prose": 2.5},
    )
    (row,) = results.rows
    assert row.true_bytes_per_token == pytest.approx(800 / 300)
    assert row.learned_bytes_per_token == 2.5


def test_failures_are_kept() -> None:
    results = judged(exchange(1), exchange(2, status=503))
    assert [reply.request_id for reply in results.failed] == ["2"]
    printed: Any = results.as_json()
    assert printed["failed"] == 1
    assert [failure["status"] for failure in printed["failures"]] == [503]


def test_the_object_has_what_it_promises() -> None:
    latency = added_latency([0.003, 0.004, 0.005], [0.001, 0.002, 0.003])
    overflow = OverflowCheck(12_000, 200, 2, "vllm_long")
    measured = Measured(latency=latency, overflow=overflow)
    results = replace(judged(exchange(1), exchange(2)), measured=measured)
    printed = json.loads(json.dumps(results.as_json()))
    assert printed["requests"] == 2
    assert printed["failed"] == 0
    assert printed["pools"] == {"short": 2}
    assert printed["misroutes"] == 0
    assert printed["added_latency_ms"] == {"p50": 2.0, "p99": 2.0}
    assert printed["overflow_check"]["attempts"] == 2
    assert printed["mape_before_pct"] > 0
    assert printed["mape_after_pct"] == 100


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7.0], 0.5) == 7


def test_the_table_has_a_row_a_category_and_a_sum() -> None:
    text = as_text(
        judged(exchange(1), exchange(2, pool="long"), exchange(3, status=503)),
        ["short", "long"],
    )
    lines = text.splitlines()
    assert lines[3].split()[:4] == ["prose", "3", "2", "1"]
    assert lines[5].split()[:4] == ["all", "3", "2", "1"]
    assert "FAILED /v1/chat/completions: 503" in text
    assert len({len(line) for line in lines[2:5:2]}) == 1


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(("tty", "shown"), [(True, True), (False, False)])
def test_the_bar_is_for_terminals(tty: bool, shown: bool) -> None:
    out = Terminal(tty)
    bar = ProgressBar("sending", 2, out)
    bar.advance()
    bar.advance()
    assert ("2/2\n" in out.getvalue()) is shown
    assert bool(out.getvalue()) is shown


def test_a_negative_difference_of_latencies_is_noise() -> None:
    assert added_latency([0.001], [0.002]) == added_latency([0.002], [0.002])
