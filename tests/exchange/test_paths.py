import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.exchange.openai import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    MESSAGES,
    RESPONSES,
    Endpoint,
)
from extproc.exchange.paths import (
    ANY_PREFIX,
    MAX_PATH_CHARS,
    UNREAD,
    PathTable,
    Target,
    normalize,
)


def api(path: str, table: PathTable = ANY_PREFIX) -> Endpoint | None:
    target = table.find(path)
    return None if target is None else target.endpoint


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("prefix", ["", "/team", "/openai", "/a/b/c", "/v1", "/x-1.0"])
@pytest.mark.parametrize("tail", ["", "/", "?api-version=1", "?a=/v1/models", "/?b#c"])
def test_an_api_is_found_behind_any_prefix(path: str, prefix: str, tail: str) -> None:
    versioned = path.startswith(("/v1/", "/v2/"))
    expected = ENDPOINTS[path] if versioned or not prefix else None

    assert api(f"{prefix}{path}{tail}") in (expected, ENDPOINTS.get(f"{prefix}{path}"))


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("//v1//chat/completions", CHAT),
        ("/v1/./chat/x/../completions", CHAT),
        ("/v1/%63hat/completion%73", CHAT),
        ("/../v1/completions", COMPLETIONS),
        ("/chat/completions", CHAT),
        ("/llm/chat/completions", CHAT),
        ("/llm/embeddings", EMBEDDINGS),
        ("/anthropic/v1/messages", MESSAGES),
        ("/openai/v1/responses", RESPONSES),
    ],
)
def test_a_path_is_read_as_envoy_normalizes_it(path: str, endpoint: Endpoint) -> None:
    assert api(path) is endpoint


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/v1/models",
        "/v1/chat",
        "/v1/chat/completionsx",
        "/v1/chat/completions/1",
        "/v1%2Fchat%2Fcompletions",
        "/threads/1/messages",
        "/api/responses",
        "/v1/responses/resp_1",
        "/v1/messages/count_tokens",
        "/" * MAX_PATH_CHARS + "/v1/chat/completions",
    ],
)
def test_other_paths_are_no_api(path: str) -> None:
    assert api(path) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/openai/deployments/gpt-4/chat/completions?api-version=2024-10-21",
            Target(CHAT, "gpt-4"),
        ),
        ("/openai/deployments/a%2Fb/embeddings", Target(EMBEDDINGS, "a/b")),
        ("/azure/openai/deployments/m/completions", Target(COMPLETIONS, "m")),
    ],
)
def test_azure_names_the_model_in_the_path(path: str, expected: Target) -> None:
    assert ANY_PREFIX.find(path) == expected


@pytest.mark.parametrize(
    ("prefixes", "path", "found"),
    [
        (["/openai/v1"], "/openai/v1/chat/completions", True),
        (["/openai/v1"], "/v1/chat/completions", False),
        (["/openai/v1"], "/openai/v1/v1/chat/completions", True),
        (["/openai"], "/openai/v1/responses?x=1", True),
        (["/openai/"], "/openai/v1/responses/", True),
        (["/openai"], "/other/openai/v1/responses", False),
        (["/openai"], "/other/v1/responses", False),
        (["", "/team"], "/v1/messages", True),
        (["", "/team"], "/team/messages", True),
        (["", "/team"], "/messages", False),
        ([""], "/openai/deployments/m/chat/completions", True),
        (["/team"], "/openai/deployments/m/chat/completions", False),
        (["/team"], "/team/openai/deployments/m/chat/completions", True),
    ],
)
def test_only_the_prefixes_that_are_configured_count(
    prefixes: list[str], path: str, found: bool
) -> None:
    assert (api(path, PathTable(prefixes)) is not None) is found


@pytest.mark.parametrize("path", sorted(UNREAD))
def test_apis_that_are_not_read_are_known(path: str) -> None:
    assert ANY_PREFIX.find(path) is None
    assert ANY_PREFIX.is_unread(f"/team{path}/?x")
    assert not ANY_PREFIX.is_unread(f"{path}x")


@given(st.text(st.sampled_from("/v1.%26aA?#chat"), max_size=60))
def test_a_normalized_path_is_normal(path: str) -> None:
    normal = normalize("/" + path)

    assert normal.startswith("/")
    assert "//" not in normal
    assert "?" not in normal
    assert not {"", ".", ".."} & set(normal.split("/")[1:]) or normal == "/"


@given(st.text(max_size=80), st.none() | st.lists(st.text(max_size=5), max_size=3))
def test_no_path_raises(path: str, prefixes: list[str] | None) -> None:
    PathTable(prefixes).find(path)
    ANY_PREFIX.is_unread(path)
