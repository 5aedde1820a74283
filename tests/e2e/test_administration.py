"""The Envoy of the example does not expose vLLM's administrative endpoints."""

from typing import Any

import pytest

from .outside import Client
from .scripted import ScriptedBackend, http_response

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]


@pytest.fixture(scope="module")
def open_backends(scripted: ScriptedBackend, start_session_envoy: Any) -> Client:
    """Return an Envoy whose servers respond with status 200 to every request."""
    scripted.reply = [http_response(200, b"{}")]
    backends = [scripted.as_backend("short"), scripted.as_backend("long")]
    client: Client = start_session_envoy(backends=backends)
    return client


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1/load_lora_adapter?x=/v1/models",
        "/team/v1/load_lora_adapter",
        "/v1/./x/../load_lora_adapter",
        "/v1/load%5Flora_adapter",
        "/%761/load_lora_adapter",
        "/v1%2Fload_lora_adapter",
        "/v1%2fload_lora_adapter%2F",
        "//v1//load_lora_adapter",
        "/sleep?level=2",
        "/%73leep",
        "/wake_up",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/start_profile",
        "/update_weights",
        "/metrics",
        "/metrics?/v1/",
        "/",
        "/v1",
        "/sleep/v3/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_client_gets_a_403_and_no_server_sees_it(
    method: str, path: str, open_backends: Client, scripted: ScriptedBackend
) -> None:
    before = len(scripted.received)

    response = open_backends.request(method, path, {"lora_name": "mine"})

    assert response.status == 403
    assert response.json()["error"]["code"] == 403
    assert response.served_by in (None, "-", "")
    assert len(scripted.received) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/load_lora_adapters",
        "/v1/files/metrics.txt",
        "/llm/chat/completions?x=1",
        "/tokenize",
        "/rerank/",
    ],
)
def test_other_paths_pass(path: str, open_backends: Client) -> None:
    assert open_backends.post(path, {"model": "m"}).status == 200
