"""Clients cannot choose their pool, and no output contains any of their data."""

import contextlib
import gzip
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
    b"content-type: application/json\r\n"
)
PLAIN = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)

TRICKS = {
    "as it is": b"x-llm-pool: short\r\n" + PLAIN,
    "in capitals": b"X-LLM-POOL: short\r\n" + PLAIN,
    "twice": b"x-llm-pool: short\r\nX-Llm-Pool: short\r\n" + PLAIN,
    "twice with another between": b"x-llm-pool: short\r\nx-llm-budget: 1\r\n"
    b"x-llm-pool: short\r\n" + PLAIN,
    "with underscores": b"x_llm_pool: short\r\nx-llm_pool: short\r\n" + PLAIN,
    "with spaces around": b"x-llm-pool:\t short \r\n" + PLAIN,
    "nominated as a connection header": b"connection: x-llm-pool\r\n"
    b"x-llm-pool: short\r\n" + PLAIN,
    "as a trailer": b"transfer-encoding: chunked\r\ntrailer: x-llm-pool\r\n\r\n"
    + CHUNKED
    + b"x-llm-pool: short\r\n\r\n",
    "as a header and a trailer": b"transfer-encoding: chunked\r\nx-llm-pool: short\r\n\r\n"
    + CHUNKED
    + b"x-llm-pool: short\r\n\r\n",
    "marked as an overflow": b"x-llm-overflow: 1\r\nx-envoy-attempt-count: 2\r\n"
    + PLAIN,
    "with Envoy's own headers": b"x-llm-pool: short\r\nx-envoy-original-path: /\r\n"
    b"x-envoy-retriable-header-names: x-llm-pool\r\n"
    b"x-envoy-internal: true\r\n" + PLAIN,
    "on another spelling of the path": b"x-llm-pool: short\r\n" + PLAIN,
}
PATHS = {"on another spelling of the path": b"/v1//chat/./completions?x-llm-pool=short"}


@pytest.fixture(scope="module")
def undecided(stack: Any, start_session_envoy: Any) -> Any:
    """Return an Envoy without a router, where only client headers could affect the
    routes.
    """

    def ask_nobody(bootstrap: dict[str, Any]) -> None:
        for cluster in bootstrap["static_resources"]["clusters"]:
            if cluster["name"] == "extproc":
                (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
                # This is the discard port, on which no process listens.
                endpoint["endpoint"]["address"]["socket_address"]["port_value"] = 9
                del cluster["health_checks"]

    return start_session_envoy(change=ask_nobody)


def answer(client: Any, trick: str) -> bytes:
    path = PATHS.get(trick, b"/v1/chat/completions")
    head = HEAD.replace(b"/v1/chat/completions", path)
    received: bytes = client.raw(head + TRICKS[trick])
    return received


def served_by(received: bytes) -> str | None:
    found = re.search(rb"\r\nx-llm-served-by: (\w+)\r\n", received)
    return found and found[1].decode()


@pytest.mark.parametrize("trick", TRICKS)
def test_without_a_decision_no_client_reaches_the_short_pool(
    undecided: Any, trick: str
) -> None:
    received = answer(undecided, trick)
    assert served_by(received) in ("vllm_long", None)
    if served_by(received) is None:
        assert re.match(rb"HTTP/1\.1 4\d\d ", received), "Envoy may refuse it"


@pytest.mark.parametrize("trick", TRICKS)
def test_with_a_decision_only_that_counts(client: Any, trick: str) -> None:
    tricked = TRICKS[trick].replace(b"short", b"long")
    received = client.raw(
        HEAD.replace(b"/v1/chat/completions", PATHS.get(trick, b"/v1/chat/completions"))
        + tricked
    )
    # The router reads the body and decides, even if the length is missing or the path
    # is spelled differently.
    assert served_by(received) in ("vllm_short", None)


MARK = "zxqwvkj"
"""A mark that occurs in no other text."""


@pytest.fixture(scope="module")
def marked(start_session: Any, scripted: Any, stack: Any, tmp_path_factory: Any) -> Any:
    """Run a router with every log enabled, and with its state in files."""
    state = tmp_path_factory.mktemp("marked")
    client, admin = start_session(
        {
            "feedback": {"sample": "all", "inject_usage": True},
            "log": {"level": "debug"},
            "state": {"store": "directory", "path": str(state), "interval_s": 0.1},
        },
        [scripted.as_backend("short"), stack.backend("long")],
    )
    return client, admin, state


def test_no_secret_is_written_anywhere(
    marked: Any, scripted: Any, respond: Any, eventually: Any
) -> None:
    """Requests and responses contain the mark everywhere; no output may contain it."""
    client, admin, state = marked
    headers = {
        "authorization": f"Bearer {MARK}",
        "cookie": f"session={MARK}",
        "x-api-key": MARK,
        "x-llm-category": MARK,
        "user-agent": MARK,
    }
    said = {"role": MARK, "content": f"{MARK} says hello"}
    body = {
        "model": "m",
        "messages": [said],
        "tools": [
            {"type": "function", "function": {"name": MARK, "description": MARK}}
        ],
        "user": MARK,
        "max_tokens": 5,
        MARK: MARK,
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    choice = {"index": 0, "message": {"role": "assistant", "content": MARK}}
    scripted.reply = [
        respond(200, json.dumps({"choices": [choice], "usage": usage}).encode())
    ]
    path = f"/v1/chat/completions?key={MARK}"
    assert client.post(path, body, headers).status == 200
    chunk = {"choices": [{"index": 0, "delta": {"content": MARK}}], "usage": usage}
    stream = f"data: {json.dumps(chunk)}\n\ndata: {MARK}\n\ndata: [DONE]\n\n".encode()
    scripted.reply = [respond(200, stream, "text/event-stream")]
    assert client.post(path, body | {"stream": True}, headers).status == 200
    # Every kind of unreadable body.
    broken: list[tuple[bytes, dict[str, str]]] = [
        (b'{"model": "' + MARK.encode(), {}),
        (json.dumps([MARK]).encode(), {}),
        (gzip.compress(MARK.encode())[:-4], {"content-encoding": "gzip"}),
        (MARK.encode(), {"content-encoding": MARK}),
        (b'{"messages": "' + MARK.encode() + b'\xff"}', {}),
        (json.dumps(body | {"max_tokens": MARK}).encode(), {}),
        (json.dumps(body | {"messages": {MARK: 1}}).encode(), {}),
    ]
    for data, more in broken:
        client.post(path, data, headers | more)
    for refusal in (400, 500):
        error = json.dumps({"error": {"message": MARK}}).encode()
        scripted.reply = [respond(refusal, error)]
        client.post(path, body, headers)
    scripted.reply = [b"HTTP/1.1 200 OK\r\n" + MARK.encode()]
    client.post(path, body, headers)
    eventually(
        lambda: admin.metric("extproc_observations_total", result="learned") >= 2
    )
    synced = admin.metric("extproc_state_syncs_total", result="ok")
    eventually(
        lambda: admin.metric("extproc_state_syncs_total", result="ok") >= synced + 2
    )

    places = written(admin, state)
    assert {"/metrics", "/status", "/", "log"} <= set(places)
    assert any(place.endswith("learned.v2.json") for place in places)
    for place, text in places.items():
        assert text, place
        assert MARK not in text, f"{place}: {around(text)}"
    # This is Envoy's access log as configured by envoy.yaml.
    access_log = client.envoy.access_log.read_text()
    assert "/v1/chat/completions" in access_log
    assert MARK not in access_log, around(access_log)


def written(admin: Any, state: Path) -> dict[str, str]:
    """Return everything that the router shows, logs and stores, keyed by where it is."""
    places = {}
    for path in state.iterdir():
        # While a file is being written, it has a temporary name, which may no longer
        # exist here.
        with contextlib.suppress(FileNotFoundError):
            if text := path.read_text():
                places[str(path)] = text
    for page_path in ("/metrics", "/status", "/"):
        with urllib.request.urlopen(
            admin.router.admin_url + page_path, timeout=60
        ) as page:
            places[page_path] = page.read().decode()
    places["log"] = admin.router.child.log.read_text()
    return places


def around(text: str) -> str:
    at = text.index(MARK)
    return text[max(0, at - 100) : at + 100]
