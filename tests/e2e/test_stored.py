"""All requests of a stored conversation reach the same pool."""

from typing import Any

import pytest

from .outside import Client

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

PATH = "/v1/responses"
LONG_INPUT = "all the words of a long story " * 3000
CREATE = {"model": "m", "input": "Hello", "max_output_tokens": 4}


@pytest.fixture(scope="module")
def kept_short(stack: Any, start_session: Any) -> Client:
    """Return an Envoy in which the short pool's server stores the responses."""
    config = {"requests": {"responses_pool": "short"}}
    client: Client
    client, _ = start_session(config, stack.backends)
    return client


CONVERSATION: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", PATH, CREATE),
    ("POST", PATH, CREATE | {"store": True, "input": LONG_INPUT}),
    ("POST", PATH, CREATE | {"background": True}),
    ("POST", PATH, CREATE | {"previous_response_id": "resp_1"}),
    ("POST", f"/team{PATH}/", CREATE | {"conversation": "conv_1"}),
    ("GET", f"{PATH}/resp_1", None),
    ("GET", f"{PATH}/resp_1/input_items?limit=2", None),
    ("POST", f"{PATH}/resp_1/cancel", None),
    ("DELETE", f"{PATH}/resp_1", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CONVERSATION)
def test_all_of_it_reaches_the_pool_that_is_configured(
    method: str, path: str, body: dict[str, Any] | None, kept_short: Client
) -> None:
    response = kept_short.request(method, path, body)
    record = kept_short.record(response)

    assert (record.pool, record.reason) == ("short", "stored")


@pytest.mark.parametrize(("method", "path", "body"), CONVERSATION[1:])
def test_without_a_setting_it_reaches_the_long_pool(
    method: str, path: str, body: dict[str, Any] | None, client: Client
) -> None:
    response = client.request(method, path, body)
    record = client.record(response)

    assert response.served_by == "vllm_long"
    assert (record.pool, record.reason) == ("long", "stored")


def test_what_is_not_kept_is_routed_by_its_size(
    client: Client, kept_short: Client
) -> None:
    for each in (client, kept_short):
        for text, pool in (("Hello", "short"), (LONG_INPUT, "long")):
            response = each.post(PATH, CREATE | {"store": False, "input": text})
            assert (response.status, response.served_by) == (200, f"vllm_{pool}")
