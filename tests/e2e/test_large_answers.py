"""Responses of several chunks are observed to the last chunk, on each transport."""

import json
from typing import Any

import pytest

from extproc.config import Transport

from .outside import Admin, Client
from .scripted import ScriptedBackend, http_response

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

MIB = 1 << 20
USAGE = {"prompt_tokens": 7, "total_tokens": 7}


@pytest.fixture(scope="module", params=list(Transport), ids=str)
def scripted_pool(
    request: pytest.FixtureRequest, scripted: ScriptedBackend, start_session: Any
) -> tuple[Client, Admin]:
    config = {
        "server": {"transport": request.param.value},
        "feedback": {"sample": "all"},
    }
    backends = [scripted.as_backend("short"), scripted.as_backend("long")]
    started: tuple[Client, Admin] = start_session(config, backends)
    return started


@pytest.mark.parametrize("mib", [8, 30])
def test_a_large_answer_is_learned_from_and_no_stream_fails(
    mib: int,
    scripted: ScriptedBackend,
    scripted_pool: tuple[Client, Admin],
    eventually: Any,
) -> None:
    client, admin = scripted_pool

    def learned() -> float:
        return admin.metric("extproc_observations_total", result="learned")

    vectors = [{"object": "embedding", "index": 0, "embedding": "A" * (mib * MIB)}]
    answer = json.dumps({"object": "list", "data": vectors, "usage": USAGE}).encode()
    scripted.reply = [http_response(200, answer)]
    before = learned()

    response = client.post("/v1/embeddings", {"model": "m", "input": "word " * 7})

    assert response.status == 200
    assert response.body == answer
    eventually(lambda: learned() == before + 1)
    assert client.envoy.stat("http.llm.ext_proc.streams_failed") == 0
