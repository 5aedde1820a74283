"""The cases of ``cases.yaml`` through every transport except the default."""

import dataclasses
from typing import Any

import pytest

from extproc.config import ServerConfig, Transport

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

DEFAULT = next(
    field.default
    for field in dataclasses.fields(ServerConfig)
    if field.name == "transport"
)
OTHERS = [transport.value for transport in Transport if transport is not DEFAULT]


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, stack: Any, start_session: Any) -> Any:
    config = {"server": {"transport": request.param}, "feedback": {"sample": "all"}}
    return start_session(config, stack.backends)


def test_case(case: dict[str, Any], other: Any, check_case: Any) -> None:
    client, _ = other
    check_case(client, case)


def test_a_megabyte_is_read_and_arrives(other: Any) -> None:
    client, _ = other
    words = "internationalization " * 15_000
    padding = " " * 600_000
    raw = f'{{"model": "m",{padding}"max_tokens": 4, "prompt": "{words}"}}'.encode()
    response = client.post("/v1/completions", raw)
    assert (response.status, response.served_by) == (200, "vllm_long")
    assert client.record(response).reason == "over_capacity"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_usage_is_learned(stream: bool, other: Any, eventually: Any) -> None:
    client, admin = other

    def learned() -> float:
        return admin.metric("extproc_observations_total", result="learned")

    before = learned()
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    assert client.chat("Hello", **(fields if stream else {})).status == 200
    eventually(lambda: learned() == before + 1)


def test_no_message_was_out_of_order(other: Any) -> None:
    _, admin = other
    assert admin.metric("extproc_protocol_errors_total") == 0


def test_it_drains(other: Any) -> None:
    """After draining, requests go to the long pool; this must be the module's last
    test.
    """
    client, admin = other
    assert admin.router.child.stop(grace_s=60) == 0
    response = client.chat("Hello")
    assert (response.status, response.served_by) == (200, "vllm_long")
