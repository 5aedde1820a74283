"""The router learns from the backends' token counts, and reports what it learned."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

# No other test sends this text with these hints, so only this module affects the
# estimate for this text.
DIGITS = "31415926535 " * 400


def learned(admin: Any) -> float:
    return admin.metric("extproc_observations_total", result="learned")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        (
            "/v1/chat/completions",
            {"stream": True, "stream_options": {"include_usage": True}},
        ),
        ("/v1/messages", {}),
        ("/v1/messages", {"stream": True}),
    ],
    ids=["chat", "chat stream", "messages", "messages stream"],
)
def test_usage_is_learned(
    path: str, fields: dict[str, Any], client: Any, admin: Any, eventually: Any
) -> None:
    before = learned(admin)
    body = {
        "model": "m",
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "Hello there"}],
    }
    assert client.post(path, body | fields).status == 200
    eventually(lambda: learned(admin) == before + 1)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_usage_of_responses_is_learned(
    stream: bool, client: Any, admin: Any, eventually: Any
) -> None:
    before = learned(admin)
    assert (
        client.post(
            "/v1/responses", {"model": "m", "input": "Hello", "stream": stream}
        ).status
        == 200
    )
    eventually(lambda: learned(admin) == before + 1)


def test_the_next_estimate_is_better_and_moves_the_decision(
    start_session: Any, stack: Any, eventually: Any
) -> None:
    """A new router assumes 4 bytes per token for digits, so its estimate is too low."""
    config = {"feedback": {"sample": "all"}, "estimator": {"name": "ema-text"}}
    client, admin = start_session(config, stack.backends)
    estimates, counts = [], []
    for number in range(3):
        response = client.chat(DIGITS)
        counts.append(response.json()["usage"]["prompt_tokens"])
        estimates.append(client.record(response).prompt_tokens)
        if number == 0:
            # The 12,000 tokens are estimated as 3,000, so the short pool rejects them.
            overflow = client.chat("7" * 12_000)
            assert (overflow.status, overflow.attempts) == (
                200,
                1 if learned(admin) else 2,
            )
        eventually(lambda wanted=number + 2: learned(admin) == wanted)
    errors = [abs(e - c) / c for e, c in zip(estimates, counts, strict=True)]
    assert errors[0] > 0.3
    assert errors[-1] < 0.15
    second = client.chat("7" * 12_000)
    assert (second.served_by, second.attempts) == ("vllm_long", 1)
    assert client.record(second).pool == "long"


def test_what_is_learned_is_shown(client: Any, admin: Any, eventually: Any) -> None:
    text = "31 41 59 26 53 58 97 93 " * 400
    before = learned(admin)
    counted = client.chat(text).json()["usage"]["prompt_tokens"]
    eventually(lambda: learned(admin) == before + 1)
    ratio = admin.status()["bytes_per_token"]["digits"]
    # Other tests have also sent digits. All these texts have one to two bytes per
    # token.
    assert ratio == pytest.approx(len(text) / counted, rel=0.5)
    assert admin.metric("extproc_bytes_per_token", category="digits") == pytest.approx(
        ratio
    )


def test_what_is_never_learned(
    client: Any,
    admin: Any,
    scripted: Any,
    scripted_client: Any,
    respond: Any,
    eventually: Any,
) -> None:
    observed = admin.metric("extproc_observations_total")
    before = learned(admin)
    client.chat("Hello", max_tokens=0)  # a 400
    client.chat("Hello", stream=True)  # a stream without usage
    for usage in (
        {"prompt_tokens": 0},
        None,
        {"prompt_tokens": -4},
        {"prompt_tokens": "many"},
        {},
    ):
        scripted.reply = [respond(200, json.dumps({"usage": usage}).encode())]
        assert scripted_client.chat("Hello").status == 200
    eventually(lambda: admin.metric("extproc_observations_total") == observed + 7)
    assert learned(admin) == before


def test_decisions_are_counted(client: Any, admin: Any) -> None:
    labels = {"pool": "short", "category": "prose", "reason": "within_threshold"}
    before = admin.metric("extproc_decisions_total", **labels)
    client.chat("Hello there")
    assert admin.metric("extproc_decisions_total", **labels) == before + 1


def test_an_overflow_is_counted(optimistic: Any, eventually: Any) -> None:
    client, admin = optimistic
    before = admin.metric("extproc_overflow_retries_total")
    assert client.chat("7" * 12_000).attempts == 2
    eventually(lambda: admin.metric("extproc_overflow_retries_total") == before + 1)


class TestInjection:
    """With `feedback.inject_usage`, the router gets the usage, but the client does not."""

    @pytest.fixture(scope="class")
    @classmethod
    def injecting(cls, stack: Any, start_session: Any) -> Any:
        return start_session(
            {"feedback": {"sample": "all", "inject_usage": True}}, stack.backends
        )

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    def test_a_stream_is_learned_and_its_client_sees_nothing_of_it(
        self, path: str, injecting: Any, client: Any, eventually: Any
    ) -> None:
        client_of_it, admin = injecting
        body = {"model": "m", "max_tokens": 5, "stream": True}
        body |= (
            {"prompt": "Hello"}
            if path.endswith("/v1/completions")
            else {"messages": [{"role": "user", "content": "Hello"}]}
        )
        before = learned(admin)
        plain = client.post(path, body)
        injected = client_of_it.post(path, body)
        assert (injected.status, injected.served_by) == (200, "vllm_short")
        eventually(lambda: learned(admin) == before + 1)
        assert comparable(injected.body) == comparable(plain.body)

    def test_a_client_that_asks_gets_its_usage(self, injecting: Any) -> None:
        client, _ = injecting
        response = client.chat(
            "Hello", stream=True, stream_options={"include_usage": True}
        )
        assert b'"usage":{"prompt_tokens":4' in response.body

    def test_a_document_is_left_alone(self, injecting: Any) -> None:
        client, _ = injecting
        assert client.chat("Hello").json()["usage"]["completion_tokens"] == 4


def comparable(stream: bytes) -> list[Any]:
    """Return the events of a stream without fields that vary between equal requests."""
    events = []
    for block in stream.split(b"\n\n"):
        data = block.removeprefix(b"data: ")
        if data in (b"", b"[DONE]"):
            events.append(data)
            continue
        document = json.loads(data)
        del document["id"], document["created"]
        events.append(document)
    return events
