"""``extproc profile`` measures a small server that runs the scheduler in real time."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from extproc.cli import main
from extproc.fleet.scheduler import Scheduler, SchedulerLimits
from extproc.fleet.steptime import Linear

LIMITS = SchedulerLimits(8, 512, 1024, 200)
STEP = Linear(base_s=2e-3, seq_s=1e-4, token_s=5e-6)
METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="200"} 1.0
vllm:num_preemptions_total{engine="0",model_name="fake"} 0.0
"""


class FakeVllm:
    """A server with the three endpoints that `profile` reads and a real-time scheduler."""

    def __init__(self, metrics: str = METRICS) -> None:
        self.scheduler = Scheduler(LIMITS)
        self.metrics = metrics
        self.model_list: Any = {"data": [{"id": "fake", "max_model_len": 1024}]}
        self.tokens: dict[str, asyncio.Queue[bool]] = {}
        self.prompts: list[tuple[int, ...]] = []
        self.work = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.read_metrics)
        app.router.add_post("/v1/completions", self.complete)
        app.cleanup_ctx.append(self.engine)
        return app

    async def engine(self, app: web.Application) -> Any:
        task = asyncio.create_task(self.run())
        yield
        task.cancel()

    async def run(self) -> None:
        while True:
            await self.work.wait()
            step = self.scheduler.step()
            prefill = sum(n for n in step.scheduled.values() if n > 1)
            await asyncio.sleep(STEP.fixed_s(prefill, len(step.sampled)))
            for name in step.sampled:
                self.tokens[name].put_nowait(name in step.finished)
            if not self.scheduler.running and not self.scheduler.waiting:
                self.work.clear()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(self.model_list)

    async def read_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = f"r{len(self.prompts)}"
        self.prompts.append(tuple(body["prompt"]))
        self.tokens[name] = asyncio.Queue()
        self.scheduler.add(name, len(body["prompt"]), body["max_tokens"])
        self.work.set()
        response = web.StreamResponse()
        await response.prepare(request)
        last = False
        while not last:
            last = await self.tokens[name].get()
            await response.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def served() -> Iterator[tuple[str, FakeVllm]]:
    """Run a fake server in its own thread, as if it were on another machine."""
    started: list[tuple[str, FakeVllm]] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        fake = FakeVllm()
        runner = web.AppRunner(fake.app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        started.append((f"http://127.0.0.1:{port}", fake))
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()


def profile(url: str, output: Path, *more: str) -> int:
    return main(
        [
            *("profile", url, "--output", str(output), "--max-num-seqs", "8"),
            *("--max-num-batched-tokens", "512", "--largest-batch", "4"),
            *("--tokens", "12", "--repeats", "1", "--check-requests", "12", *more),
        ]
    )


def test_a_profile_is_written_checked_and_taken_by_simulate(
    served: tuple[str, FakeVllm],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, fake = served
    output = tmp_path / "profile.json"
    assert profile(url, output, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(output.read_text())
    assert (document["model"], document["max_model_len"]) == ("fake", 1024)
    assert (document["num_blocks"], document["block_size"]) == (200, 16)
    assert document["step_time"]["base_s"] > 0
    assert min(document["step_time"].values()) >= 0
    check = document["measured"]["check"]
    assert check["requests"] == 12
    assert check["measured"]["requests_per_s"] > 0
    assert check["predicted"]["mean_ttft_s"] > 0
    assert check["preemptions_measured"] == 0
    assert len(set(fake.prompts)) == len(fake.prompts), "a prefix cache could answer"
    arguments = ["--profile", str(output), "--pool", "only:1024:2", "--rate", "3"]
    assert main(["simulate", *arguments, "--requests", "50", "--json"]) == 0


def test_a_server_without_kv_metrics_is_status_1(
    served: tuple[str, FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, fake = served
    fake.metrics = "up 1\n"
    assert profile(url, tmp_path / "profile.json") == 1
    error = capsys.readouterr().err
    assert "/metrics: no vllm:cache_config_info with num_gpu_blocks" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"models": []}, "expected an OpenAI list of models"),
        ({"data": []}, "expected an OpenAI list of models"),
        ({"data": [{"id": "gpt"}]}, "no max_model_len; expected vLLM's"),
    ],
)
def test_another_kind_of_server_is_status_1(
    models: Any,
    message: str,
    served: tuple[str, FakeVllm],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, fake = served
    fake.model_list = models
    assert profile(url, tmp_path / "profile.json") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_model_is_named(
    served: tuple[str, FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = served
    assert profile(url, tmp_path / "profile.json", "--model", "other") == 1
    assert "--model: other; expected one of fake" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1:1"], "url: 127.0.0.1:1; expected http:// or https://"),
        (["http://x", "--tokens", "2"], "--tokens: 2; expected >= 8"),
        (["http://x", "--repeats", "0"], "--repeats: 0; expected >= 1"),
        (["http://x", "--gpus", "0"], "--gpus: 0; expected >= 1"),
        (["http://x", "--check-requests", "-1"], "--check-requests: -1; expected >= 0"),
        (["http://x", "--output", "no/such/f"], "--output: no/such/f; expected a file"),
        (["http://x", "--output", "."], "--output: .; expected a file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"extproc profile: {message}")
    assert captured.err.count("\n") == 1


def test_nobody_there_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile("http://127.0.0.1:1", tmp_path / "p.json") == 1
    assert capsys.readouterr().err.startswith("extproc profile: http://127.0.0.1:1: ")
