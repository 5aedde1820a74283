"""``extproc routes`` for several models, under a real Envoy Gateway and Istio."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..deploy.manifests import Manifest, printed
from ..e2e.fleet import FLEET, LONG, NAMES, POOLS, chat
from ..e2e.outside import Client, Response
from ..e2e.unsized import PATH, SENDERS
from ..patience import be_patient, wait_until
from .conftest import System
from .istio import Istio, refusals
from .traffic import answered

pytestmark = [pytest.mark.gateways, pytest.mark.xdist_group("gateways")]

MIB = 1 << 20
WINDOWS = {
    **{pool: 65536 for pools in POOLS.values() for pool in pools},
    # These windows are smaller than the router assumes, so that some requests overflow.
    "llama-short": 2048,
    "qwen-short": 2048,
}


@pytest.fixture(scope="module", params=["gateway-api", "istio"])
def gateway(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def system(
    gateway: str, start: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    manifests = patient(FLEET, gateway, tmp_path_factory.mktemp("config"))
    with start(manifests, FLEET, WINDOWS, "qwen3-32b") as running:
        yield running


@pytest.fixture(scope="module")
def without_router(system: System) -> Iterator[System]:
    system.router.child.kill()
    yield system
    system.router.child.start()
    system.router.wait_ready()


def patient(config: dict[str, Any], gateway: str, folder: Path) -> list[Manifest]:
    manifests = printed(config, gateway, folder)
    be_patient(manifests)
    return manifests


Send = Callable[[Client, bytes], Response]


def test_every_object_is_accepted(gateway: str, system: System, tmp_path: Path) -> None:
    assert system.gateway.complaints() == []
    if isinstance(system.gateway, Istio):
        assert refusals(printed(FLEET, gateway, tmp_path), tmp_path) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("send", SENDERS)
def test_a_request_takes_the_pool_of_its_model_that_fits(
    name: str, send: Send, system: System
) -> None:
    pools = POOLS[NAMES[name]]

    assert answered(send(system.client, chat(name))) == (200, pools[0])
    assert answered(send(system.client, chat(name, LONG[:150_000]))) == (200, pools[-1])


@pytest.mark.parametrize("name", ["legal-de", "qwen3-32b"])
def test_an_overflow_is_answered_by_the_own_model_s_largest_pool(
    name: str, system: System
) -> None:
    body = chat(name, LONG[:15_000])

    assert answered(system.client.post(PATH, body)) == (200, POOLS[NAMES[name]][-1])


def test_what_envoy_answers_itself(system: System) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter/"):
        assert system.client.post(path, {"lora_name": "x"}).status == 403
    models = system.client.request("GET", "/v1/models")
    listed = [each["id"] for each in models.json()["data"]]
    assert listed == ["llama-3.1-8b", "support-v2", "qwen3-32b", "qwen2.5-vl-7b"]
    assert models.headers["content-type"] == "application/json"
    unknown = system.client.post(PATH, chat("gpt-4"))
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, 404)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("send", SENDERS)
def test_without_the_router_a_request_reaches_its_own_model(
    name: str, send: Send, without_router: System
) -> None:
    own = POOLS[NAMES[name]][-1]
    for content in ("Hello", LONG):
        response = send(without_router.client, chat(name, content))
        assert answered(response) == (200, own)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x": {"model": "llama-3.1-8b"}, "model": "qwen3-32b"}',
        b'{"model": "qwen3-32b", "x": [{"model": "vlm"}]}',
        rb'{"x": "\"model\": \"llama-3.1-8b\"", "model": "qwen3-32b"}',
        b'{"model": "llama-3.1-8b", "model": "qwen3-32b"}',
    ],
)
@pytest.mark.parametrize("send", SENDERS)
def test_without_the_router_decoys_name_no_model(
    body: bytes, send: Send, without_router: System
) -> None:
    _, pool = answered(send(without_router.client, body))

    assert pool == "qwen-long"


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (chat("gpt-4"), "", 404),
        (chat("illegal-de"), "", 404),
        (chat(None), "", 400),
        (b'[{"model": "qwen3-32b"}]', "", 400),
        (gzip.compress(chat("qwen3-32b"), mtime=0), "gzip", 503),
    ],
)
def test_without_the_router_or_a_model_no_server_is_asked(
    body: bytes, encoding: str, status: int, without_router: System
) -> None:
    headers = {"content-encoding": encoding} if encoding else {}
    response = without_router.client.post(PATH, body, headers)

    assert response.status == status
    assert response.json()["error"]["code"] == status
    assert "x-standin" not in response.headers


def test_a_client_s_own_headers_do_not_count(without_router: System) -> None:
    headers = {"x-llm-model": "llama-3.1-8b", "x-llm-pool": "llama-short"}
    response = without_router.client.post(PATH, chat("qwen3-32b"), headers)

    assert answered(response) == (200, "qwen-long")


@pytest.mark.parametrize("send", SENDERS)
def test_without_the_router_a_large_body_reaches_its_own_model(
    send: Send, without_router: System
) -> None:
    body = chat("qwen3-32b") + b" " * (5 * MIB)

    assert answered(send(without_router.client, body)) == (200, "qwen-long")


def test_a_router_that_returns_is_asked_again(without_router: System) -> None:
    router = without_router.router
    router.child.start()
    router.wait_ready()
    try:
        client = without_router.client
        wait_until(
            lambda: answered(client.post(PATH, chat("qwen3-32b")))[1] == "qwen-short"
        )
    finally:
        router.child.kill()


def test_a_default_model_takes_unknown_ones(
    gateway: str, start: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = copy.deepcopy(FLEET) | {"unknown_model": {"default": "qwen3-32b"}}
    manifests = patient(config, gateway, tmp_path_factory.mktemp("config"))
    with start(manifests, config, WINDOWS, "qwen3-32b") as system:
        client = system.client
        assert answered(client.post(PATH, chat("gpt-4"))) == (200, "qwen-short")
        system.router.child.kill()
        assert answered(client.post(PATH, chat("gpt-4"))) == (200, "qwen-long")
        assert answered(client.post(PATH, chat("legal-de"))) == (200, "llama-long")
