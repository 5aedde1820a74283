"""Parts of ``ext_proc_filter.yaml``, pasted into an Envoy that already has two pools."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from extproc.demo.stack.stack import Stack, envoy

from ..pasted import composed
from ..patience import be_patient
from .outside import Client
from .refusals import OTHER, TOO_LONG
from .scripted import ScriptedBackend

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(
        "EXTPROC_ENVOY_CONFIG" in os.environ, reason="for Envoy 1.40 or later"
    ),
]

REFUSALS = ["vLLM 0.10, input", "vLLM, no room", "vLLM 0.32, prompt"]


@pytest.fixture(scope="module")
def pasted(
    stack: Stack,
    scripted: ScriptedBackend,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """Return an Envoy with the pasted parts; its short pool is the scripted backend."""
    directory = tmp_path_factory.mktemp("pasted")
    source = directory / "composed.yaml"
    source.write_text(yaml.safe_dump(composed()))
    backends = [scripted.as_backend("short"), stack.backend("long")]
    started = envoy(source, backends, stack.router.port, directory, change=be_patient)
    with started.child:
        started.wait_ready()
        yield Client(started)
        started.child.kill()


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "code": 400}}).encode()


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_for_length_is_answered_by_the_long_pool(
    name: str,
    stream: bool,
    pasted: Client,
    scripted: ScriptedBackend,
    respond: Callable[..., bytes],
) -> None:
    scripted.reply = [respond(400, error(TOO_LONG[name]))]

    response = pasted.chat("Hello", {"x-llm-overflow": "1"}, stream=stream)

    assert (response.status, response.attempts) == (200, 2)
    assert response.headers["x-standin"] == "long"
    assert "x-llm-overflow" not in response.headers
    (received,) = scripted.received
    assert received.headers["x-llm-pool"] == "short"
    assert "x-llm-overflow" not in received.headers


def test_another_400_passes_once(
    pasted: Client, scripted: ScriptedBackend, respond: Callable[..., bytes]
) -> None:
    scripted.reply = [respond(400, error(OTHER["temperature"]))]

    response = pasted.chat("Hello")

    assert (response.status, response.attempts) == (400, 1)
    assert len(scripted.received) == 1


def test_clients_do_not_choose(pasted: Client, scripted: ScriptedBackend) -> None:
    headers = {"x-llm-pool": "short"}
    long: dict[str, Any] = {"max_tokens": 20_000}

    response = pasted.chat("Hello", headers, **long)

    assert response.headers["x-standin"] == "long"
    assert scripted.received == []
