"""In every body mode, a fleet behind a real Envoy does what ``explain`` predicts."""

import contextlib
import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from extproc.cli import main
from extproc.demo.stack.stack import Router

from ..patience import be_patient, wait_until
from .body_modes import ROUTING, configured
from .fleet import ENVOY, LONG, NAMES, POOLS, chat, pool_of
from .outside import Admin, Client, Response
from .scripted import ScriptedBackend
from .unsized import PATH, send_chunked, send_http2

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

MIB = 1 << 20
Explain = Callable[[bytes], Any]


@pytest.fixture(scope="module")
def start_in_mode(
    models_router: Router, start_fleet: Callable[..., Client]
) -> Callable[..., Client]:
    def start(mode: str, *, override: bool) -> Client:
        def change(bootstrap: dict[str, Any]) -> None:
            be_patient(bootstrap)
            configured(mode, override=override)(bootstrap)

        client = start_fleet(models_router.port, change)
        wait_until(lambda: client.envoy.healthy_endpoints("extproc") == 1)
        return client

    return start


@pytest.fixture(scope="module", params=ROUTING.values(), ids=list(ROUTING))
def fleet(
    request: pytest.FixtureRequest, start_in_mode: Callable[..., Client]
) -> Client:
    mode, override = request.param
    return start_in_mode(mode, override=override)


@pytest.fixture(scope="module", params=["NONE", "STREAMED", "BUFFERED_PARTIAL"])
def unrouted_fleet(
    request: pytest.FixtureRequest, start_in_mode: Callable[..., Client]
) -> Client:
    """Return an Envoy whose body mode does not let the router route by the body."""
    return start_in_mode(request.param, override=False)


@pytest.fixture(scope="module")
def explain(tmp_path_factory: pytest.TempPathFactory) -> Explain:
    """Return a function that runs ``extproc explain --config`` for a body."""
    file = tmp_path_factory.mktemp("explain") / "body.json"
    arguments = ["--config", str(ENVOY / "models-router.yaml"), "--json", str(file)]

    @cache
    def ask(body: bytes) -> Any:
        file.write_bytes(body)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["explain", *arguments]) == 0
        return json.loads(printed.getvalue())

    return ask


def send_whole(client: Client, pieces: list[bytes]) -> Response:
    return client.post(PATH, b"".join(pieces))


SENDERS = [
    pytest.param(send_whole, id="whole"),
    pytest.param(send_chunked, id="chunked"),
    pytest.param(send_http2, id="http2"),
]
Send = Callable[[Client, list[bytes]], Response]


def split(body: bytes) -> list[bytes]:
    size = max(20, len(body) // 7)
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize("content", ["Hello", LONG], ids=["short", "long"])
@pytest.mark.parametrize("send", SENDERS)
def test_every_name_reaches_the_pool_that_explain_says(
    send: Send, content: str, fleet: Client, explain: Explain, scripted: ScriptedBackend
) -> None:
    for name, model in NAMES.items():
        body = chat(name, content)
        pool = POOLS[model][0 if content == "Hello" else -1]

        response = send(fleet, split(body))

        explained = explain(body)
        assert (explained["model"], explained["decision"]["pool"]) == (model, pool)
        assert (response.status, pool_of(response)) == (200, pool)
        assert scripted.received[-1].body == body


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize(("name", "status"), [("gpt-4", 404), (None, 400)])
def test_a_name_that_explain_does_not_know_reaches_no_server(
    name: str | None,
    status: int,
    send: Send,
    fleet: Client,
    explain: Explain,
    scripted: ScriptedBackend,
) -> None:
    body = chat(name)
    before = len(scripted.received)

    response = send(fleet, split(body))

    assert explain(body)["not_routed"] == "unknown_model"
    assert response.status == status
    assert len(scripted.received) == before


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("mib", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_body_above_the_cap_reaches_its_own_model(
    mib: int, send: Send, fleet: Client, explain: Explain, scripted: ScriptedBackend
) -> None:
    """The router sets no model, and the filter after it reads only the model's name."""
    body = chat("support-v2", "A" * (mib * MIB))

    response = send(fleet, split(body))

    assert explain(body)["not_routed"] == "unknown_model"
    assert (response.status, pool_of(response)) == (200, "llama-long")
    assert scripted.received[-1].body == body


@pytest.mark.parametrize("send", SENDERS)
def test_a_mode_that_cannot_route_by_the_body_keeps_the_model(
    send: Send, unrouted_fleet: Client
) -> None:
    for name, model in NAMES.items():
        response = send(unrouted_fleet, split(chat(name)))
        assert response.status == 200
        assert pool_of(response) in POOLS[model]


def test_the_router_saw_no_fault(models_router: Router) -> None:
    admin = Admin(models_router)
    assert admin.metric("extproc_protocol_errors_total") == 0
    assert admin.metric("extproc_faults_total") == 0
