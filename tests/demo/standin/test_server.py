"""The stand-in over HTTP, in the test's process but on its own event loop."""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from extproc.demo.standin import server as standin
from extproc.demo.standin.server import StandIn
from extproc.demo.standin.tokenizer import Tokenizer

Talk = Callable[[TestClient], Awaitable[Any]]
HELLO = [{"role": "user", "content": "Hello"}]


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    standin.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.fixture
def talk(tokenizer: Tokenizer) -> Callable[..., Any]:
    """Return a function that talks to a stand-in with a window of 64 tokens."""

    def talk(conversation: Talk, *flags: str) -> Any:
        args = parse(
            "--max-model-len",
            "64",
            "--max-num-seqs",
            "4",
            "--speed",
            "1e6",
            "--name",
            "tiny",
            *flags,
        )

        async def main() -> Any:
            app = StandIn(standin.settings(args), tokenizer).application()
            async with TestClient(TestServer(app, handler_cancellation=True)) as client:
                return await conversation(client)

        return asyncio.run(main())

    return talk


async def metric(client: TestClient, name: str) -> float:
    text = await (await client.get("/metrics")).text()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(name)
    )


def test_it_answers_and_signs(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        response = await client.post(
            "/v1/chat/completions",
            json={"model": "m", "messages": HELLO, "max_tokens": 5, "ignore_eos": True},
            headers={"x-llm-pool": "short", "x-llm-budget": "9", "x-secret": "1"},
        )
        return response.status, response.headers, await response.json()

    status, headers, body = talk(conversation)
    assert status == 200
    assert (headers["x-standin"], headers["x-llm-pool"], headers["x-llm-budget"]) == (
        "tiny",
        "short",
        "9",
    )
    assert "x-secret" not in headers
    assert body["usage"] == {
        "prompt_tokens": 4,
        "total_tokens": 9,
        "completion_tokens": 5,
    }
    assert body["choices"][0]["finish_reason"] == "length"


def test_an_answer_ends_where_the_window_does(talk: Any) -> None:
    """60 prompt tokens leave 4 tokens for the output, though the client's limit is 50."""

    async def conversation(client: TestClient) -> Any:
        body = {
            "model": "m",
            "prompt": list(range(60)),
            "max_tokens": 50,
            "ignore_eos": True,
        }
        return await (await client.post("/v1/completions", json=body)).json()

    body = talk(conversation)
    assert body["usage"]["completion_tokens"] == 4
    assert body["choices"][0]["finish_reason"] == "length"


def test_equal_prompts_get_equal_answers(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = {"model": "m", "messages": HELLO}
        answers = [
            await (await client.post("/v1/chat/completions", json=body)).json()
            for _ in range(2)
        ]
        return [answer["choices"] for answer in answers]

    first, second = talk(conversation)
    assert first == second


def test_several_prompts_and_choices_are_indexed(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = {
            "model": "m",
            "prompt": ["a", "b"],
            "n": 2,
            "max_tokens": 2,
            "ignore_eos": True,
        }
        return await (await client.post("/v1/completions", json=body)).json()

    body = talk(conversation)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["completion_tokens"] == 8


def test_a_stream_is_events(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = {
            "model": "m",
            "messages": HELLO,
            "max_tokens": 3,
            "stream": True,
            "ignore_eos": True,
        }
        response = await client.post("/v1/chat/completions", json=body)
        return response.content_type, await response.text()

    content_type, text = talk(conversation)
    assert content_type == "text/event-stream"
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("data: {") == 4


def test_a_refusal_is_a_400_in_its_api_s_shape(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        long = {
            "model": "m",
            "max_tokens": 3,
            "messages": [{"role": "user", "content": "word " * 90}],
        }
        answers = []
        for path in ("/v1/chat/completions", "/v1/messages"):
            response = await client.post(path, json=long)
            answers.append((response.status, await response.json()))
        return answers

    (status, openai), (_, anthropic) = talk(conversation)
    assert status == 400
    assert "maximum context length is 64 tokens" in openai["error"]["message"]
    assert anthropic["type"] == "error"


def test_it_says_what_it_is(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        models = await (await client.get("/v1/models")).json()
        return (await client.get("/health")).status, models

    status, models = talk(conversation)
    assert status == 200
    assert models["data"][0]["max_model_len"] == 64


def test_its_metrics_are_vllm_s(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = {"model": "m", "messages": HELLO, "max_tokens": 5, "ignore_eos": True}
        await client.post("/v1/chat/completions", json=body)
        names = (
            *(
                "vllm:prompt_tokens_total",
                "vllm:generation_tokens_total",
                "vllm:num_preemptions_total",
            ),
            *(
                "vllm:num_requests_running",
                "vllm:num_requests_waiting",
                "vllm:kv_cache_usage_perc",
            ),
            *("vllm:request_success_total", "vllm:time_to_first_token_seconds_count"),
            *(
                "vllm:inter_token_latency_seconds_count",
                "vllm:e2e_request_latency_seconds_count",
            ),
        )
        return {name: await metric(client, name) for name in names}

    assert talk(conversation) == {
        "vllm:prompt_tokens_total": 4,
        "vllm:generation_tokens_total": 5,
        "vllm:num_preemptions_total": 0,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "vllm:request_success_total": 1,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 4,
        "vllm:e2e_request_latency_seconds_count": 1,
    }


def test_a_client_that_goes_away_is_forgotten(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = {
            "model": "m",
            "messages": HELLO,
            "stream": True,
            "max_tokens": 60,
            "ignore_eos": True,
        }
        response = await client.post("/v1/chat/completions", json=body)
        await response.content.readline()
        response.close()
        while await metric(client, "vllm:num_requests_running"):
            pass
        return await metric(
            client, 'vllm:request_success_total{engine="0",finished_reason="abort"'
        )

    # A step takes a tenth of a second, so the client leaves long before its sixty
    # tokens are complete.
    assert talk(conversation, "--speed", "0.1") == 1


def test_limits_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        standin.main(["--max-num-seqs", "0"])
    assert caught.value.code == 2
    assert "max_num_seqs: 0" in capsys.readouterr().err


def test_there_is_room_for_one_full_window_at_least() -> None:
    limits = standin.settings(
        parse("--max-model-len", "100", "--max-num-seqs", "1")
    ).limits
    assert limits.usable_tokens >= 100


def test_the_json_is_utf_8(talk: Any) -> None:
    async def conversation(client: TestClient) -> Any:
        body = json.dumps(
            {"model": "模型", "messages": HELLO, "max_tokens": 1}, ensure_ascii=False
        ).encode()
        return await (await client.post("/v1/chat/completions", data=body)).json()

    assert talk(conversation)["model"] == "模型"
