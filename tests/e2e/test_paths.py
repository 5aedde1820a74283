"""Paths with prefixes, on a real Envoy whose routes remove the prefixes."""

from typing import Any

import pytest

from extproc.demo.stack.envoy_config import connection_manager

from .outside import Admin, Client

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

BODY = {
    "model": "m",
    "max_tokens": 4,
    "messages": [{"role": "user", "content": "Hello"}],
}
REWRITES = {
    "^/(team|openai)/v1/": "/v1/",
    "^/llm/": "/v1/",
    "^/openai/deployments/[^/]+/": "/v1/",
    "/+$": "",
}


def rewrite(config: dict[str, Any]) -> None:
    """Remove the prefixes before requests reach vLLM, as the routes of a gateway do."""
    listener = config["static_resources"]["listeners"][0]
    (host,) = connection_manager(listener)["route_config"]["virtual_hosts"]
    routes = []
    for pattern, substitution in REWRITES.items():
        for route in host["routes"]:
            match = dict(route["match"])
            if "prefix" not in match or "route" not in route:
                continue
            del match["prefix"]
            anchored = pattern.removeprefix("^").removesuffix("$")
            match["safe_regex"] = {
                "regex": f".*{anchored}.*" if pattern[0] != "^" else f"{anchored}.*"
            }
            rewritten = {
                "regex_rewrite": {
                    "pattern": {"regex": pattern},
                    "substitution": substitution,
                }
            }
            routes.append({"match": match, "route": route["route"] | rewritten})
    host["routes"] = routes + host["routes"]


@pytest.fixture(scope="module")
def rewriting(start_session_envoy: Any) -> Client:
    client: Client = start_session_envoy(rewrite)
    return client


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/team/v1/chat/completions",
        "/openai/v1/chat/completions?api-version=1",
        "/llm/chat/completions",
        "/openai/deployments/mine/chat/completions?api-version=2024-10-21",
        "/team/v1/./x/../chat/completions",
        "/v1/chat/completions/",
    ],
)
def test_the_right_pool_answers(path: str, rewriting: Client) -> None:
    response = rewriting.post(path, BODY)

    assert (response.status, response.served_by) == (200, "vllm_short"), response
    assert rewriting.record(response).pool == "short"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "Hello", "documents": ["a", "b"]}),
        ("/rerank", {"query": "Hello", "documents": ["a", "b"]}),
        ("/v1/score", {"text_1": "Hello", "text_2": ["a", "b"]}),
    ],
)
def test_rerankers_are_decided_upon(
    path: str, body: dict[str, Any], rewriting: Client
) -> None:
    record = rewriting.record(rewriting.post(path, {"model": "m"} | body))

    assert (record.pool, record.reason) == ("short", "within_threshold")


def test_what_is_not_routed_is_counted(rewriting: Client, admin: Admin) -> None:
    def counted(reason: str) -> float:
        return admin.metric("extproc_not_routed_total", reason=reason)

    before = {reason: counted(reason) for reason in ("path", "method", "unread")}

    assert rewriting.post("/team/chat", BODY).served_by == "vllm_long"
    assert rewriting.post("/team/v1/tokenize", BODY).served_by == "vllm_long"
    assert rewriting.request("PUT", "/v1/completions").served_by == "vllm_long"

    assert {reason: counted(reason) - n for reason, n in before.items()} == {
        "path": 1,
        "method": 1,
        "unread": 1,
    }


class TestConfigured:
    """The operator has configured the prefixes."""

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, stack: Any, start_session: Any) -> Client:
        config = {"requests": {"path_prefixes": ["/team"]}}
        client, _ = start_session(config, stack.backends)
        return client

    @pytest.mark.parametrize(
        ("path", "pool"),
        [
            ("/team/v1/chat/completions", "short"),
            ("/team/chat/completions", "short"),
            ("/v1/chat/completions", None),
            ("/other/v1/chat/completions", None),
        ],
    )
    def test_only_their_requests_are_routed(
        self, path: str, pool: str | None, client: Client
    ) -> None:
        assert client.record(client.post(path, BODY)).pool == pool
