"""``extproc routes --for istio`` for several models, applied to a real Envoy.

``test_gateways`` describes the translation to Envoy's configuration.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from extproc.demo.stack.process import Child, answers_200, free_ports
from extproc.demo.stack.stack import Router, router

from ..e2e.fleet import ALL_POOLS, FLEET, LONG, NAMES, POOLS, chat
from ..e2e.outside import Client, Response
from ..e2e.scripted import ScriptedBackend, http_response
from ..e2e.unsized import PATH, send_chunked, send_http2
from ..patience import be_patient
from .manifests import Manifest, printed
from .test_gateways import bootstrap
from .translation import istio

pytestmark = pytest.mark.e2e

TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your request has "
    "3000 input tokens."
)
Pools = dict[str, ScriptedBackend]
Start = Callable[[int], Client]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("istio-models")


@pytest.fixture(scope="module")
def manifests(folder: Path) -> list[Manifest]:
    return printed(FLEET, "istio", folder, "--name", "fleet", "--host", "llm.example")


@pytest.fixture(scope="module")
def asked(folder: Path) -> Iterator[Router]:
    new = router(FLEET, folder)
    with new.child:
        new.wait_ready()
        yield new


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """Start servers that answer with the name of their pool."""
    made = {name: ScriptedBackend() for name in ALL_POOLS}
    for name, pool in made.items():
        pool.reply = [http_response(200, json.dumps({"pool": name}).encode())]
    yield made
    for pool in made.values():
        pool.close()


@pytest.fixture(scope="module")
def start(
    manifests: list[Manifest], pools: Pools, envoy_program: str, folder: Path
) -> Iterator[Start]:
    """Start an Envoy in front of the pools and of the router at this port."""
    with contextlib.ExitStack() as started:

        def begin(router_port: int) -> Client:
            at = {
                f"vllm-{name}": ("127.0.0.1", pool.port) for name, pool in pools.items()
            }
            at["token-budget-router"] = ("127.0.0.1", router_port)
            admin_port, port = free_ports(2)
            made = istio(manifests, at, "fleet")
            config = bootstrap([made], [port], admin_port)
            be_patient(config)
            path = folder / f"envoy-{port}.yaml"
            path.write_text(json.dumps(config))
            command = [envoy_program, "--config-path", str(path)]
            command += ["--use-dynamic-base-id", "--concurrency", "1"]
            log = folder / f"envoy-{port}.log"
            envoy = started.enter_context(Child("envoy", command, log))
            envoy.wait_ready(
                lambda: answers_200(f"http://127.0.0.1:{admin_port}/ready"), 60
            )
            return Client(SimpleNamespace(port=port))  # type: ignore[arg-type]

        yield begin


@pytest.fixture(scope="module")
def client(start: Start, asked: Router) -> Client:
    return start(asked.port)


@pytest.fixture(scope="module")
def without_router(start: Start) -> Client:
    return start(1)


def answered(response: Response) -> tuple[int, str | None]:
    return response.status, response.json().get("pool")


@pytest.mark.parametrize("name", NAMES)
def test_a_request_takes_the_pool_of_its_model_that_fits(
    name: str, client: Client
) -> None:
    pools = POOLS[NAMES[name]]

    assert answered(client.post(PATH, chat(name))) == (200, pools[0])
    assert answered(client.post(PATH, chat(name, LONG))) == (200, pools[-1])


def test_an_overflow_is_answered_by_the_own_model_s_largest_pool(
    client: Client, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = json.dumps({"error": {"message": TOO_LONG, "code": 400}}).encode()
    monkeypatch.setattr(pools["qwen-short"], "reply", [http_response(400, refusal)])

    response = client.post(PATH, chat("qwen3-32b"))

    assert answered(response) == (200, "qwen-long")
    assert "x-llm-overflow" not in response.headers


@pytest.mark.parametrize("name", NAMES)
def test_without_the_router_a_request_reaches_its_own_model(
    name: str, without_router: Client
) -> None:
    body = chat(name)
    pieces = [body[:20], body[20:]]
    own = {"x-llm-model": "llama-3.1-8b", "x-llm-pool": "llama-short"}
    expected = (200, POOLS[NAMES[name]][-1])

    assert answered(without_router.post(PATH, body, own)) == expected
    assert answered(send_chunked(without_router, pieces)) == expected
    assert answered(send_http2(without_router, pieces)) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"x": {"model": "llama-3.1-8b"}, "model": "qwen3-32b"}',
        b'{"model": "qwen3-32b", "x": [{"model": "vlm"}]}',
        rb'{"x": "\"model\": \"llama-3.1-8b\"", "model": "qwen3-32b"}',
    ],
)
def test_without_the_router_decoys_name_no_model(
    body: bytes, without_router: Client
) -> None:
    _, pool = answered(without_router.post(PATH, body))

    assert pool == "qwen-long"


@pytest.mark.parametrize(
    ("body", "status"), [(chat("gpt-4"), 404), (chat(None), 400), (b"[]", 400)]
)
def test_without_a_model_of_the_fleet_no_server_is_asked(
    body: bytes, status: int, without_router: Client, pools: Pools
) -> None:
    before = [len(pool.received) for pool in pools.values()]

    response = without_router.post(PATH, body)

    assert response.status == response.json()["error"]["code"] == status
    assert response.headers["content-type"] == "application/json"
    assert [len(pool.received) for pool in pools.values()] == before


def test_what_envoy_answers_itself(client: Client) -> None:
    assert client.post("/v1/load_lora_adapter", {"lora_name": "x"}).status == 403
    models = client.request("GET", "/v1/models").json()["data"]
    assert {each["root"] for each in models} == set(POOLS)
