"""A long pool that consists of a prefill and a decode server behind one address."""

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.stack.stack import Backend, stand_in
from extproc.demo.stack.stack import pair as as_pair

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

WINDOW = 65_536
# The router assumes a window of 30,000 tokens for the short pool, whose actual window
# is 8,192 tokens.
CONFIG = {
    "pools": [
        {"name": "short", "max_model_len": 30_000},
        {"name": "long", "max_model_len": WINDOW},
    ],
    "feedback": {"sample": "all", "inject_usage": True},
}
LONG = "a long story that a client sends " * 8000
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses"]


class Pair:
    """Both servers, and an Envoy that uses both as its long pool."""

    def __init__(self, prefill: Backend, decode: Backend, client: Any, admin: Any):
        self.prefill = prefill
        self.decode = decode
        self.client = client
        self.admin = admin

    def tokens(self, kind: str) -> tuple[float, float]:
        """Return one counter, prompt_tokens or generation_tokens, of each of the two
        servers.
        """
        return _counter(self.prefill, kind), _counter(self.decode, kind)


def _counter(backend: Backend, kind: str) -> float:
    with urllib.request.urlopen(f"{backend.url}/metrics") as response:
        text = response.read().decode()
    lines = [
        line for line in text.splitlines() if line.startswith(f"vllm:{kind}_total")
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def body_of(path: str, content: str, **fields: Any) -> dict[str, Any]:
    if path == "/v1/responses":
        return {"model": "m", "input": content, "max_output_tokens": 6} | fields
    message = {"role": "user", "content": content}
    return {"model": "m", "messages": [message], "max_tokens": 6} | fields


@pytest.fixture(scope="module", params=[False, True], ids=["own type", "all json"])
def pair(
    request: pytest.FixtureRequest,
    stack: Any,
    start_session: Callable[..., tuple[Any, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Run a pair whose proxy keeps the content type, or labels everything as JSON."""
    directory: Path = tmp_path_factory.mktemp("pair")
    prefill, decode = (
        stand_in(name, WINDOW, 16, directory, speed=50)
        for name in ("prefill", "decode")
    )
    long = as_pair("long", prefill, decode, directory, as_json=request.param)
    with contextlib.ExitStack() as started:
        for backend in (prefill, decode, long):
            backend.child.start()
            started.callback(backend.child.kill)
            backend.wait_ready()
        client, admin = start_session(CONFIG, [stack.backend("short"), long])
        yield Pair(prefill, decode, client, admin)


def learned(pair: Pair) -> float:
    value: float = pair.admin.metric("extproc_observations_total", result="learned")
    return value


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("path", PATHS)
def test_a_long_prompt_is_prefilled_by_one_and_decoded_by_the_other(
    pair: Pair, path: str, stream: bool, eventually: Any
) -> None:
    before = learned(pair)
    prompts, answers = pair.tokens("prompt_tokens"), pair.tokens("generation_tokens")
    response = pair.client.post(path, body_of(path, LONG, stream=stream))
    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        1,
    )
    after = pair.tokens("prompt_tokens")
    assert after[0] - prompts[0] == after[1] - prompts[1] > 30_000
    produced = [
        now - then
        for now, then in zip(pair.tokens("generation_tokens"), answers, strict=True)
    ]
    assert produced[0] == 1
    assert 1 <= produced[1] <= 6
    if stream:
        assert response.body.count(b"data:") > produced[1]
        # The client does not receive usage that only the router requested.
        assert path != PATHS[0] or b'"usage":{' not in response.body
    eventually(lambda: learned(pair) == before + 1)


def test_usage_that_a_client_asks_for_comes_through(pair: Pair) -> None:
    body = body_of(PATHS[0], LONG, stream=True, stream_options={"include_usage": True})
    response = pair.client.post(PATHS[0], body)
    events = [
        json.loads(line[6:])
        for line in response.body.splitlines()
        if line.startswith(b"data: {")
    ]
    assert events[-1]["usage"]["prompt_tokens"] > 30_000


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_what_the_short_pool_refuses_is_answered_by_the_pair(
    pair: Pair, stream: bool
) -> None:
    body = body_of(PATHS[0], "7" * 12_000, stream=stream)
    response = pair.client.post(PATHS[0], body)
    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        2,
    )


def test_a_prompt_beyond_both_windows_is_refused_once(pair: Pair) -> None:
    response = pair.client.post(PATHS[0], body_of(PATHS[0], "7" * 70_000))
    assert (response.status, response.served_by) == (400, "vllm_long")
    assert response.json()["error"]["code"] == 400
