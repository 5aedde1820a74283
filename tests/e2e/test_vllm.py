"""The same cases on two real vLLM servers, on CPU, with a tiny random model.

EXTPROC_VLLM_PYTHON names an interpreter that has vLLM; the default is the current
interpreter. The servers take a minute to start, and need 3 GB of memory.
"""

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from extproc.demo.stack.stack import Stack
from extproc.demo.stack.vllm_backend import MODEL_NAME

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.xdist_group("vllm")]

LONG_TEXT = "all the words of a long story " * 3000


def test_case(case: dict[str, Any], vllm_client: Any, check_case: Any) -> None:
    if "vllm" in case:
        pytest.skip(case["vllm"])
    check_case(vllm_client, case, MODEL_NAME)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_an_overflow_is_answered_by_the_long_pool(
    stream: bool, vllm_client: Any
) -> None:
    """The request bypasses the router; after the short pool's error, the long pool
    answers.
    """
    body = {"model": MODEL_NAME, "prompt": LONG_TEXT, "max_tokens": 4, "stream": stream}
    bypass = vllm_client.bypass()
    response = bypass.post(
        "/v1/completions", body, {"x-llm-pool": "short"}, timeout=120
    )
    assert (response.status, response.served_by, response.attempts) == (
        200,
        "vllm_long",
        2,
    )


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"n": 0}, {"top_p": 5}])
def test_another_refusal_passes_once(fields: dict[str, Any], vllm_client: Any) -> None:
    response = vllm_client.chat("Hello", model=MODEL_NAME, **fields)
    assert (response.status, response.attempts) == (400, 1)


def test_usage_is_learned(
    vllm_client: Any, vllm_stack: Stack, admin_of: Any, eventually: Any
) -> None:
    admin = admin_of(vllm_stack.router)

    def learned() -> float:
        return admin.metric("extproc_observations_total", result="learned")

    text = "How many tokens is this sentence, and who has counted them? " * 40
    before = learned()
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    for number, fields in enumerate([{}, usage, {}, usage]):
        response = vllm_client.chat(text, model=MODEL_NAME, **fields)
        assert response.status == 200
        eventually(lambda wanted=before + number + 1: learned() == wanted)
    counted = vllm_client.chat(text, model=MODEL_NAME)
    estimate = vllm_client.record(counted).prompt_tokens
    assert estimate == pytest.approx(counted.json()["usage"]["prompt_tokens"], rel=0.1)


def test_the_openai_client(vllm_client: Any) -> None:
    url = f"{vllm_client.envoy.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        stream = sdk.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        usage = list(stream)[-1].usage
        assert usage is not None
        assert usage.completion_tokens <= 5


def test_the_anthropic_client(vllm_client: Any) -> None:
    url = vllm_client.envoy.url
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as sdk:
        message = sdk.messages.create(
            model=MODEL_NAME,
            max_tokens=5,
            messages=[{"role": "user", "content": "Hello"}],
        )
    assert message.usage.input_tokens > 0


def test_its_logs_name_no_error(vllm_stack: Stack) -> None:
    log = Path(vllm_stack.router.child.log).read_text()
    assert "error" not in log.lower()
