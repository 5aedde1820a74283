"""The access log component for Envoy Gateway, tested in a real Envoy Gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..e2e.outside import Admin
from ..patience import wait_until
from .conftest import System

pytestmark = [pytest.mark.gateways, pytest.mark.xdist_group("gateways")]

CONFIG = {
    "feedback": {"access_log": True},
    "pools": [
        {"name": "short", "max_model_len": 30_000},
        {"name": "long", "max_model_len": 65536},
    ],
}
OVERFLOWING = "The quick brown fox jumps over the lazy dog. " * 900


@pytest.fixture(scope="module")
def system(start: Any, kustomize: Any) -> Iterator[System]:
    with start(kustomize("envoy-gateway+overflow+access-log"), CONFIG) as running:
        yield running


def test_every_response_teaches_the_router(system: System) -> None:
    metric = Admin(system.router).metric
    learned = "extproc_observations_total"
    before = metric(learned, result="learned")
    overflows = metric("extproc_overflow_retries_total")

    answers = [
        system.client.chat("Hello"),
        system.client.chat(
            "Hello", stream=True, stream_options={"include_usage": True}
        ),
        system.client.chat("word " * 40_000),
        system.client.chat(OVERFLOWING),
    ]

    assert [response.status for response in answers] == [200] * 4
    # Each decision has a record, including the decisions on the fixture's own requests.
    wait_until(
        lambda: (
            metric("extproc_access_log_entries_total", result="observed")
            == metric("extproc_decisions_total")
        )
    )
    assert metric(learned, result="learned") - before >= 4
    assert metric("extproc_overflow_retries_total") - overflows == 1


def test_what_the_router_did_not_decide_is_not_reported(system: System) -> None:
    metric = Admin(system.router).metric
    assert system.client.request("GET", "/v1/models").status == 200
    wait_until(lambda: metric("extproc_access_log_entries_total") > 0)

    assert metric("extproc_access_log_entries_total", result="unrelated") == 0
