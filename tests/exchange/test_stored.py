"""Stored responses: all requests of a conversation reach the same pool."""

import json
from typing import Any

import pytest

from extproc.exchange.events import (
    BodyMode,
    Echo,
    Release,
    RequestBody,
    Route,
    Step,
)
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.policy import Pool, PoolLoad, Reason

from .messages import CAP, DUPLEX, LONG, SHORT, exchange, play, request, routed, send

RESPONSES = "/v1/responses"
TO_SHORT = ExchangeSettings(CAP, responses_pool="short")
DEFAULT = ExchangeSettings(CAP)


def decide(settings: ExchangeSettings, **fields: Any) -> Step:
    body = json.dumps({"model": "m", "input": "Hi", "max_output_tokens": 9} | fields)
    head = request(len(body), path=RESPONSES)
    machine = exchange(watch=True, settings=settings)
    return play(machine, head, RequestBody(body.encode(), True))[-1]


KEPT: list[dict[str, Any]] = [
    {"store": True},
    {"background": True},
    {"background": True, "store": False},
    {"previous_response_id": "resp_1"},
    {"previous_response_id": "resp_1", "store": False},
    {"conversation": "conv_1"},
    {"conversation": {"id": "conv_1"}},
]


@pytest.mark.parametrize("fields", KEPT, ids=json.dumps)
@pytest.mark.parametrize(
    ("settings", "pool"), [(DEFAULT, LONG), (TO_SHORT, SHORT)], ids=["unset", "set"]
)
def test_what_a_server_keeps_takes_one_pool_and_teaches_nothing(
    settings: ExchangeSettings, pool: Pool, fields: dict[str, Any]
) -> None:
    step = decide(settings, **fields)

    assert (routed(step).pool, routed(step).reason) == (pool, Reason.STORED)
    assert routed(step).features is None
    assert step.end


@pytest.mark.parametrize(
    ("settings", "fields", "reason"),
    [
        (DEFAULT, {}, Reason.WITHIN_THRESHOLD),
        (DEFAULT, {"store": None}, Reason.WITHIN_THRESHOLD),
        (DEFAULT, {"store": False}, Reason.WITHIN_THRESHOLD),
        (DEFAULT, {"store": "yes"}, Reason.WITHIN_THRESHOLD),
        (TO_SHORT, {}, Reason.STORED),
        (TO_SHORT, {"store": None}, Reason.STORED),
        (TO_SHORT, {"store": False}, Reason.WITHIN_THRESHOLD),
    ],
)
def test_whether_a_response_is_kept_that_does_not_say_so_is_configured(
    settings: ExchangeSettings, fields: dict[str, Any], reason: Reason
) -> None:
    assert routed(decide(settings, **fields)).reason is reason


def test_load_does_not_move_what_a_server_keeps() -> None:
    machine = exchange(loads=lambda: {"long": PoolLoad(available=False)})
    body = b'{"input": "Hi", "store": true}'

    _, step = play(machine, request(body, path=RESPONSES), RequestBody(body, True))

    assert routed(step).pool == LONG


def test_what_is_too_large_to_be_read_goes_where_the_rest_of_it_is() -> None:
    step = send(exchange(settings=TO_SHORT), request(CAP + 1, path=RESPONSES))

    assert (routed(step).pool, routed(step).reason) == (SHORT, Reason.TOO_LARGE)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/team/v1/responses/resp_1?stream=true&starting_after=4"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ],
)
@pytest.mark.parametrize("mode", [None, *BodyMode])
def test_a_response_is_asked_for_where_it_is_kept(
    method: str, path: str, mode: BodyMode | None
) -> None:
    head = request(None, path=path, method=method, mode=mode, end=True)

    step = send(exchange(settings=TO_SHORT), head)

    assert isinstance(step.reply, Route)
    assert step.reply.body is None
    assert (routed(step).pool, routed(step).reason) == (SHORT, Reason.STORED)
    assert step.end


def test_a_body_that_nobody_reads_passes_in_full_duplex() -> None:
    path = "/v1/responses/resp_1/cancel"
    steps = play(
        exchange(settings=TO_SHORT),
        request(None, path=path, mode=DUPLEX),
        RequestBody(b"{}", True),
    )

    assert isinstance(steps[0].reply, Route)
    assert not steps[0].end
    assert steps[1] == Step(Echo(b"{}", True), end=True)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/",
        "/v1/responses/a/b",
        "/v1/responses/a/cancel/b",
        "/api/responses/a",
        "/v1/chat/completions/a",
    ],
)
def test_other_paths_are_no_kept_response(path: str) -> None:
    step = send(exchange(settings=TO_SHORT), request(path=path, method="GET", end=True))

    assert step.not_routed is not None


def test_a_kept_response_is_released_in_full_duplex() -> None:
    body = b'{"input": "Hi", "store": true}'

    _, step = play(
        exchange(settings=TO_SHORT),
        request(body, path=RESPONSES, mode=DUPLEX),
        RequestBody(body, True),
    )

    assert isinstance(step.reply, Release)
    assert routed(step).pool == SHORT
