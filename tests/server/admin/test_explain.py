"""POST /explain on the admin port: responses, errors, and no stored data."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from extproc.address import Address
from extproc.config import RequestsConfig, load_config
from extproc.exchange.events import BodyMode, RequestBody, RequestHeaders
from extproc.exchange.machine import Exchange
from extproc.exchange.settings import ExchangeSettings
from extproc.routing.decision import Decision
from extproc.routing.explanation import (
    Explanation,
    FailedOpenExplanation,
    NotRoutedExplanation,
)
from extproc.server.admin.explain import Explainer
from extproc.server.admin.server import AdminServer
from extproc.server.build import build_generation
from extproc.server.in_force import InForce
from extproc.server.observe.metrics import Metrics
from extproc.server.services.decide import Api
from extproc.server.services.ext_proc import ExtProcService
from extproc.wire import router_pb2 as pb

from ..in_force import make_in_force
from .reports import status_report

MAX_BODY_BYTES = 4096
BODY = {"messages": [{"role": "user", "content": "A secret text."}]}


def ask(
    client_calls: Callable[[aiohttp.ClientSession, str], Awaitable[None]],
) -> None:
    """Run client calls against an admin port."""

    async def run() -> None:
        explainer = Explainer(
            make_in_force(settings=ExchangeSettings(max_body_bytes=MAX_BODY_BYTES))
        )
        admin = AdminServer(
            Address.parse("127.0.0.1:0"),
            CollectorRegistry(),
            lambda: True,
            status_report,
            explainer,
            MAX_BODY_BYTES,
        )
        address = await admin.start()
        try:
            async with aiohttp.ClientSession() as session:
                await client_calls(session, f"http://{address}")
        finally:
            await admin.stop()

    asyncio.run(run())


def test_explains_with_path_and_hint(caplog: pytest.LogCaptureFixture) -> None:
    async def calls(session: aiohttp.ClientSession, url: str) -> None:
        async with session.post(f"{url}/explain?hint=code", json=BODY) as response:
            assert response.status == 200
            explanation = await response.json()
        assert explanation["category"]["name"] == "code"
        assert explanation["decision"]["pool"] == "short"
        assert "secret" not in json.dumps(explanation)
        completion = {"prompt": [1, 2, 3]}
        path = "?path=/v1/completions"
        async with session.post(f"{url}/explain{path}", json=completion) as response:
            assert (await response.json())["prompt"]["tokens"] == 3

    with caplog.at_level(logging.DEBUG):
        ask(calls)
    assert "secret" not in caplog.text


def test_says_whether_requests_of_a_path_are_routed() -> None:
    async def calls(session: aiohttp.ClientSession, url: str) -> None:
        for path, routed in (
            ("/v2/x", False),
            ("/team/v1/chat/completions/", True),
        ):
            query = f"{url}/explain?path={path}"
            async with session.post(query, json=BODY) as response:
                assert (await response.json())["routed"] is routed

    ask(calls)


def test_refuses_what_it_cannot_explain() -> None:
    async def calls(session: aiohttp.ClientSession, url: str) -> None:
        large = b"x" * (2 * MAX_BODY_BYTES + 1)
        async with session.post(f"{url}/explain", data=large) as response:
            assert response.status == 413
        async with session.get(f"{url}/explain") as response:
            assert response.status == 405

    ask(calls)


def test_a_body_over_the_cap_is_explained_as_routing_would() -> None:
    explainer = Explainer(make_in_force(settings=ExchangeSettings(max_body_bytes=10)))
    explanation = explainer.explain(json.dumps(BODY).encode())
    assert isinstance(explanation, FailedOpenExplanation)
    assert explanation.decision.reason == "too_large"


FLEET = load_config(
    "models:\n"
    "  a: {pools: [{name: a-short, max_model_len: 9000}, {name: a-long, "
    "max_model_len: 90000}]}\n"
    "  b: {adapters: ['b-*'], pools: [{name: b, max_model_len: 9000}]}\n"
    "model: {header: x-model}\n",
    {},
)


def test_several_models_are_explained_as_they_are_routed() -> None:
    explainer = Explainer(InForce(build_generation(FLEET)))
    read = explainer.explain(json.dumps({**BODY, "model": "b-1"}).encode())
    assert isinstance(read, Explanation)
    assert (read.model, read.decision.pool) == ("b", "b")
    unread = explainer.explain(b"not json", model_header="a")
    assert isinstance(unread, FailedOpenExplanation)
    assert (unread.model, unread.decision.pool) == ("a", "a-long")
    unknown = explainer.explain(json.dumps({**BODY, "model": "c"}).encode())
    assert isinstance(unknown, NotRoutedExplanation)
    assert (unknown.asked, unknown.models) == ("c", ["a", "b"])
    assert unknown.not_routed == "unknown_model"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "b", "input": "x", "store": True}),
        ("/v1/responses", {"model": "a", "input": "x", "store": True}),
        ("/v1/responses", {"model": "a", "input": "x"}),
        ("/v1/responses", {"model": "a", "input": "x", "store": False}),
        ("/v1/responses", {"model": "a", "input": 1}),
        ("/team/v1/responses/resp_1", {}),
        ("/openai/deployments/a/chat/completions", {"messages": 1}),
        ("/openai/deployments/b-1/chat/completions", {"messages": []}),
    ],
)
@pytest.mark.parametrize("responses_pool", ["a-short", "b", None])
def test_explain_decide_and_envoy_agree(
    path: str, body: dict[str, Any], responses_pool: str | None
) -> None:
    config = replace(FLEET, requests=RequestsConfig(responses_pool=responses_pool))
    in_force = InForce(build_generation(config))
    raw = json.dumps(body).encode()
    decided = ext_proc_decision(in_force, path, raw)
    explained = Explainer(in_force).explain(raw, path)
    answered = Api(ExtProcService(in_force, Metrics()), MAX_BODY_BYTES).decide(
        pb.DecideRequest(path=path, body=raw)
    )
    if decided is None:
        assert isinstance(explained, NotRoutedExplanation)
        assert (answered.pool, answered.reason) == ("", explained.not_routed)
        return
    assert not isinstance(explained, NotRoutedExplanation)
    assert explained.model == decided.base_model == answered.model
    seen = (decided.pool.name, decided.reason)
    assert (explained.decision.pool, explained.decision.reason) == seen
    assert (answered.pool, answered.reason) == seen


def ext_proc_decision(in_force: InForce, path: str, body: bytes) -> Decision | None:
    exchange = Exchange(in_force.now.decider)
    headers = {":path": path, ":method": "POST", "content-length": str(len(body))}
    exchange.receive(RequestHeaders(headers, False, BodyMode.BUFFERED, BodyMode.NONE))
    exchange.receive(RequestBody(body, True))
    return exchange.decision
